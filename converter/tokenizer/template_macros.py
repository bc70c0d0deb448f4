"""Jinja macros that a rewritten template may need: what Python does by itself and minijinja has no word for."""

from typing import Final

# json.dumps with an indent or separators, from tojson without: `_json(value, indent or none, level, comma, colon)`.
JSON: Final = """\
{%- macro _json(value, indent, level, comma, colon) -%}
    {%- set here = "" if indent == none else "\\n" ~ " " * (indent * level) -%}
    {%- set inside = "" if indent == none else "\\n" ~ " " * (indent * (level + 1)) -%}
    {%- if value is mapping and value -%}
        {{- "{" -}}
        {%- for key in value -%}
            {{- inside ~ (key | tojson) ~ colon ~ _json(value[key], indent, level + 1, comma, colon) -}}
            {{- "" if loop["last"] else comma -}}
        {%- endfor -%}
        {{- here ~ "}" -}}
    {%- elif value is iterable and value is not string and value is not mapping and value -%}
        {{- "[" -}}
        {%- for item in value -%}
            {{- inside ~ _json(item, indent, level + 1, comma, colon) -}}
            {{- "" if loop["last"] else comma -}}
        {%- endfor -%}
        {{- here ~ "]" -}}
    {%- else -%}{{- value | tojson -}}{%- endif -%}
{%- endmacro -%}
"""

# Values as Python prints them: minijinja prints true, none and ["a"] where Jinja2 prints True, None and ['a'].
STR: Final = """\
{%- macro _repr(value) -%}
    {%- if value is string -%}
        {%- set text = value | replace("\\\\", "\\\\\\\\") | replace("\\n", "\\\\n") | replace("\\t", "\\\\t") -%}
        {%- if "'" in value and '"' not in value -%}{{- '"' ~ text ~ '"' -}}
        {%- else -%}{{- "'" ~ (text | replace("'", "\\\\'")) ~ "'" -}}{%- endif -%}
    {%- elif value == none -%}{{- "None" -}}
    {%- elif value is boolean -%}{{- "True" if value else "False" -}}
    {%- elif value is mapping -%}
        {{- "{" -}}
        {%- for key in value -%}
            {{- _repr(key) ~ ": " ~ _repr(value[key]) ~ ("" if loop["last"] else ", ") -}}
        {%- endfor -%}
        {{- "}" -}}
    {%- elif value is iterable -%}
        {{- "[" -}}
        {%- for item in value -%}{{- _repr(item) ~ ("" if loop["last"] else ", ") -}}{%- endfor -%}
        {{- "]" -}}
    {%- else -%}{{- value -}}{%- endif -%}
{%- endmacro -%}
{%- macro _str(value) -%}
    {{- value if value is string or value is not defined else _repr(value) -}}
{%- endmacro -%}
"""
