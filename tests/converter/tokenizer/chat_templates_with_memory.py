"""More chat templates of public kinds, written anew: those that look back, ahead, or at all before they write."""

from typing import Final

_OPEN: Final = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"

_LAST_QUESTION: Final = (
    """\
{%- set ns = namespace(searching=true, last=messages | length - 1) %}
{%- for m in messages[::-1] %}
    {%- set place = (messages | length - 1) - loop.index0 %}
    {%- set is_result = m.content.startswith('<result>') and m.content.endswith('</result>') %}
    {%- if ns.searching and m.role == 'user' and not is_result %}
        {%- set ns.searching = false %}
        {%- set ns.last = place %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set said = m.content if m.content is string else '' %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == 'assistant' and '</think>' in said %}
        {%- set thought = said.split('</think>')[0].split('<think>')[-1] %}
        {%- set said = said.split('</think>')[-1] %}
    {%- endif %}
    {{- said + '<|im_end|>\\n' }}
{%- endfor %}
"""
    + _OPEN
)
_PREAMBLE: Final = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "1 Jan 2025" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set rules = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set rules = "" %}
{%- endif %}
{{- "<|head|>system<|/head|>\\n\\nDate: " + date_string + "\\n\\n" }}
{%- if tools %}
    {{- "Answer with {\\"name\\": ..., \\"parameters\\": ...}.\\n\\n" }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- rules + "<|end|>" }}
{%- for m in messages %}
    {%- if 'tool_calls' in m %}
        {%- if not m.tool_calls | length == 1 %}
            {{- raise_exception("One call at a time.") }}
        {%- endif %}
        {%- set call = m.tool_calls[0].function %}
        {{- '<|head|>assistant<|/head|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}{{- "}<|end|>" }}
    {%- else %}
        {%- set role = 'ipython' if m.role == 'tool' else m.role %}
        {{- '<|head|>' + role + '<|/head|>\\n\\n' + m.content | trim + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|head|>assistant<|/head|>\\n\\n' }}{%- endif %}
"""
_LAST_USER: Final = """\
{%- set asked = messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for m in messages %}
    {%- if m["role"] == "user" %}
        {%- if loop.first and m == asked[0] %}{{- "[FIRST]" }}{%- endif %}
        {{- "[INST] " + m["content"] + "[/INST]" }}
    {%- elif m["role"] == "assistant" %}
        {{- " " + m["content"] + eos_token }}
    {%- else %}
        {{- "[" + m["role"] | upper + "] " + m["content"] + "\\n\\n" }}
    {%- endif %}
{%- endfor %}
"""
_MODE: Final = """\
{%- set mode = '/think' %}
{%- if enable_thinking is defined and not enable_thinking %}{%- set mode = '/no_think' %}{%- endif %}
{%- if messages[0].role == 'system' %}
    {%- if '/no_think' in messages[0].content %}{%- set mode = '/no_think' %}{%- endif %}
    {%- set rules = messages[0].content.replace('/no_think', '').replace('/think', '').rstrip() %}
{%- endif %}
{{- '<|im_start|>system\\nMode: ' + mode + '\\n\\n' + (rules if rules else 'You are Bob.') + '<|im_end|>\\n' }}
{%- for m in messages if m.role != 'system' %}
    {%- if m.role == 'assistant' %}{% generation %}
        {{- '<|im_start|>assistant\\n' + m.content + '<|im_end|>\\n' }}
    {%- endgeneration %}{%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
""" + _OPEN.replace("assistant\\n", "assistant\\n' + ('' if mode == '/think' else '<think>\\n\\n</think>\\n') + '")
_JOINED: Final = (
    "{% for m in messages %}{% if loop.previtem is defined and loop.previtem.role == m.role %}"
    "{{ '\\n\\n' + m.content }}{% else %}{{ ('' if loop.first else '<|im_end|>\\n') + '<|im_start|>' + m.role + '\\n' "
    "+ m.content }}{% endif %}{% if loop.last %}{{ '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_XML: Final = (
    """\
{%- macro element(name, value) -%}
    <{{ name }}>{% if value is mapping %}{% for k in value %}{{ element(k, value[k]) }}{% endfor %}
    {%- elif value is string %}{{ value }}{% else %}{{ value | tojson }}{% endif %}</{{ name }}>
{%- endmacro %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if loop.first %}{%- for t in tools or [] %}{{- element('tool', t.function) + '\\n' }}{%- endfor %}{%- endif %}
    {{- m.content or '' }}
    {%- for c in m.tool_calls or [] %}
        {{- '<call>' + c.function.name }}
        {%- for k, v in c.function.arguments.items() %}
            {{- '<key>' + k + '</key><value>' }}{{- v if v is string else v | tojson }}{{- '</value>' }}
        {%- endfor %}{{- '</call>' }}
    {%- endfor %}{{- '<|im_end|>\\n' }}
{%- endfor %}
"""
    + _OPEN
)

TEMPLATES: Final[dict[str, str]] = {
    "the last question, looked for from the end": _LAST_QUESTION,
    "a preamble with a date, tools and one call at a time": _PREAMBLE,
    "the first of all that users asked": _LAST_USER,
    "a mode that the system message may change": _MODE,
    "neighbours of one role joined": _JOINED,
    "tools and calls as XML": _XML,
}
