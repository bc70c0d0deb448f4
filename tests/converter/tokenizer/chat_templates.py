"""Chat templates of the kinds that public fine-tunes carry, written anew; name -> source, or named sources."""

from typing import Final

from gemma_edge.converter.tokenizer.chat_template import gemma_template
from tests.converter.tokenizer import chat_templates_with_memory

_OPEN: Final = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
_GEMMA_TURNS: Final = (
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' }}"
    "{{ m['content'] | trim }}{{ '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
_CHATML_LOOP: Final = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n'}}{% endfor %}" + _OPEN
)
_HERMES: Final = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "Functions:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role in ('user', 'developer') or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' + (message.content or '') }}
        {%- for call in message.tool_calls %}
            {%- if call.function is defined %}
                {%- set call = call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' + (call.arguments | tojson) }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
_DECLARATIONS: Final = """\
{%- macro written(value) -%}
    {%- if value is string -%}{{ '<escape>' + value + '<escape>' }}
    {%- elif value is mapping -%}
        {{- '{' -}}
        {%- for key, item in value | dictsort -%}
            {{- key }}:{{ written(item) }}{% if not loop.last %},{% endif -%}
        {%- endfor -%}
        {{- '}' -}}
    {%- elif value is sequence -%}
        [{%- for item in value -%}{{ written(item) }}{% if not loop.last %},{% endif %}{%- endfor -%}]
    {%- else -%}{{ value | tojson }}{%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- set ns = namespace(previous='') -%}
{%- if tools or messages[0]['role'] in ['system', 'developer'] -%}
    {{- '<start_of_turn>developer\\n' -}}
    {%- if messages[0]['role'] in ['system', 'developer'] -%}{{ messages[0]['content'] | trim }}{%- endif -%}
    {%- for tool in tools or [] -%}
        <start_function_declaration>declaration:{{ tool['function']['name'] }}
        {{- written({'description': tool['function']['description'], 'parameters': tool['function']['parameters']}) -}}
        <end_function_declaration>
    {%- endfor -%}
    {{- '<end_of_turn>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message['role'] in ['system', 'developer'] and loop.first -%}
    {%- elif message['role'] == 'tool' -%}
        <start_function_response>response:{{ message['name'] }}{{ written({'value': message['content']}) -}}
        <end_function_response>
    {%- else -%}
        {{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' -}}
        {%- if message['content'] -%}{{ message['content'] | trim }}{%- endif -%}
        {%- for call in message.get('tool_calls') or [] -%}
            <start_function_call>call:{{ call['function']['name'] }}{{ written(call['function']['arguments']) -}}
            <end_function_call>
        {%- endfor -%}
        {{- '<end_of_turn>\\n' -}}
    {%- endif -%}
    {%- set ns.previous = message['role'] -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""
_NOTEBOOK: Final = """\
{{ bos_token }}{% if tools %}{{ '<start_of_turn>user\\nYou may call:\\n' }}{{ tools | tojson(indent=4) }}
{{ '<end_of_turn>\\n' }}{% endif %}
{%- for m in messages -%}
{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user' if m.role == 'tool' else m.role) + '\\n' }}
{%- if m.role == 'tool' -%}{{ '```tool_output\\n' + m.content + '\\n```' }}
{%- else -%}{{ (m.content or '') | trim }}{%- endif -%}
{%- for call in m.tool_calls or [] -%}
{{ '```tool_code\\n' + call.function.name + '(' }}
{%- for key, value in call.function.arguments.items() -%}
{{ key + '=' + (value | tojson) + ('' if loop.last else ', ') }}
{%- endfor -%}{{ ')\\n```' }}
{%- endfor -%}{{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""
_LLAMA_3: Final = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
_LLAMA_2: Final = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_MISTRAL: Final = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token}}{% endif %}{% endfor %}"
)
_METHODS: Final = (
    "{{ bos_token }}{% for m in messages %}{% set role = m.get('role', 'user').strip().upper() %}"
    "{% set parts = m.get('content').split('</think>') %}{{ '<|' + role + '|>' + parts[-1].lstrip('\\n') }}"
    "{% if m.get('name') %}{{ m['name'] }}{% endif %}{% if role.startswith('A') and not role.endswith('X') %}"
    "{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|ASSISTANT|>' }}{% endif %}"
)
_SKIPPING: Final = (
    "{% for m in messages %}{% if m.role == 'developer' %}{% continue %}{% endif %}"
    "{% for word in ['a', 'b'] %}{% if word == 'b' %}{% break %}{% endif %}{{ '<' + word + '>' }}{% endfor %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}" + _OPEN
)
_BRACES: Final = (
    "{% if tools %}{{ '<|im_start|>system\\n' }}{% for t in tools %}{{ t['function']['name'] }}: "
    "{{ t['function']['parameters'] }} {{ t['function']['strict'] | default(none) }}\n{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endif %}{% for m in messages %}{{ '<|im_start|>' ~ m['role'] ~ '\\n' }}"
    "{% if m['content'] is defined and m['content'] is not none %}{{ m['content'] }}{% endif %}"
    "{% for c in m['tool_calls'] or [] %}{{ c['function']['name'] }} {{ c['function']['arguments'] }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}" + _OPEN
)
_PRINTED: Final = """\
{%- if tools is iterable and tools | length > 0 %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- '<function>' + tool.function.name }}
        {%- for name, field in tool.function.parameters.properties | items %}
            {{- '\\n' + name + ': ' + field.type }}
            {%- if field.default is defined %}{{ ' = ' ~ (field.default | string) }}{% endif %}
        {%- endfor %}
        {{- '</function>\\n' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call><function=' + call.function.name + '>' }}
        {%- for name, value in call.function.arguments | items %}
            {{- '<parameter=' + name + '>' }}
            {%- if value is mapping or (value is sequence and value is not string) %}{{ value | tojson }}
            {%- else %}{{ value | string }}{% endif %}
            {{- '</parameter>' }}
        {%- endfor %}
        {{- '</function></tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

TEMPLATES: Final[dict[str, str | dict[str, str]]] = {
    "ChatML, of TRL": _CHATML_LOOP,
    "ChatML, a system message of its own": (
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are Bob.<|im_end|>\\n' }}{% endif %}"
        + _CHATML_LOOP
    ),
    "ChatML, joined with tildes": (
        "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}{% endfor %}" + _OPEN
    ),
    "ChatML, text and no expressions": (
        "{% for m in messages %}\n<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}\n"
        "{% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}\n"
    ),
    "ChatML, trained on the model's words only": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}"
        "{%- generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration -%}{% else %}"
        "{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}" + _OPEN
    ),
    "Gemma 2": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}" + _GEMMA_TURNS
    ),
    "Gemma, a written <bos>": "{{ '<bos>' }}" + _GEMMA_TURNS,
    "Gemma, <bos> as text": "<bos>" + _GEMMA_TURNS,
    "Gemma, <eos> behind replies": "{{ bos_token }}" + _GEMMA_TURNS.replace(
        "{{ '<end_of_turn>\\n' }}", "{{ '<end_of_turn>\\n' + (eos_token if m['role'] == 'assistant' else '') }}"
    ),
    "Gemma, a written <eos> behind all": "<bos>"
    + _GEMMA_TURNS.replace("<end_of_turn>\\n' }}", "<end_of_turn><eos>' }}"),
    "Gemma, a system turn": "{{ bos_token }}" + _GEMMA_TURNS.replace(
        "m['content'] | trim", "m['content'] | trim if m['role'] != 'system' else 'Note: ' ~ m['content']"
    ),
    "Zephyr": (
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
        "{{ '<|user|>\\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
        "{{ '<|system|>\\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
        "{{ '<|assistant|>\\n'  + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
    "Llama 2": _LLAMA_2,
    "Llama 3": _LLAMA_3,
    "Mistral": _MISTRAL,
    "Alpaca": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '### Instruction:\\n' + m['content'] }}"
        "{% elif m['role'] == 'assistant' %}{{ '### Response:\\n' + m['content'] }}{% else %}{{ m['content'] }}"
        "{% endif %}{{ '\\n\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
    ),
    "Vicuna": (
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}{% set rest = messages[1:] %}"
        "{% else %}{{ 'A chat between a user and an assistant. ' }}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}{% elif m['role'] == "
        "'assistant' %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
    "Phi 3": (
        "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}"
        "{{ '<|system|>\\n' + message['content'] + '<|end|>\\n' }}{% elif message['role'] == 'user' %}"
        "{{ '<|user|>\\n' + message['content'] + '<|end|>\\n' }}{% elif message['role'] == 'assistant' %}"
        "{{ '<|assistant|>\\n' + message['content'] + '<|end|>\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    ),
    "OpenChat": (
        "{{ bos_token }}{% for message in messages %}{{ 'GPT4 Correct ' + message['role'].title() + ': ' + "
        "message['content'] + '<|end_of_turn|>' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ 'GPT4 Correct Assistant:' }}{% endif %}"
    ),
    "Command R": (
        "{{ bos_token }}{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|><|' + "
        "{'user': 'USER', 'assistant': 'CHATBOT'}.get(m['role'], 'SYSTEM') + '_TOKEN|>' + "
        "m['content'].strip() + '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
    ),
    "DeepSeek": (
        "{% set ns = namespace(system='', is_first=true) %}{% for m in messages %}{% if m['role'] == 'system' %}"
        "{% set ns.system = ns.system + m['content'] %}{% endif %}{% endfor %}{{ bos_token }}{{ ns.system }}"
        "{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.is_first = false %}"
        "{{ '<|User|>' + m['content'] }}{% endif %}{% if m['role'] == 'assistant' and m['content'] is not none %}"
        "{% set content = m['content'] %}{% if '</think>' in content %}"
        "{% set content = content.split('</think>')[-1] %}{% endif %}{{ '<|Assistant|>' + content + '<|end|>' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}"
    ),
    "with a switch for thinking": (
        _CHATML_LOOP.replace(_OPEN, "")
        + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% if enable_thinking is defined and "
        "enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
    ),
    "with Python's methods": _METHODS,
    "with continue and break": _SKIPPING,
    "with macros and blocks": (
        "{% macro turn(role, text='') %}<|im_start|>{{ role }}\n{{ text }}{{ caller() if caller else '' }}<|im_end|>\n"
        "{% endmacro %}{% for m in messages %}{% set said %}{{ m.content | trim }}{% endset %}"
        "{% with name = m.role | capitalize %}{{ turn(name, said) }}{% endwith %}{% endfor %}"
        "{% if add_generation_prompt %}{% filter lower %}<|IM_START|>Assistant\n{% endfilter %}{% endif %}"
    ),
    "with a date": (
        "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ bos_token }}"
        "{{ 'Today is ' + date_string + '.\\n' }}" + _GEMMA_TURNS
    ),
    "Hermes: tools and calls as JSON": _HERMES,
    "Hermes: tools by a template of their own": {"default": _CHATML_LOOP, "tool_use": _HERMES},
    "FunctionGemma": _DECLARATIONS,
    "Gemma 4": gemma_template("gemma4"),
    "Gemma: tools as indented JSON, calls as Python": _NOTEBOOK,
    "values as Python prints them": _BRACES,
    "Qwen Coder: arguments as Python prints them": _PRINTED,
    "Gemma: a table of tools": (
        "{{ bos_token }}{% if tools is not none %}{{ '<start_of_turn>user\\n' }}{% for tool in tools %}"
        "{% set f = tool.function %}{{ loop.index }}. {{ f.name }}({% for k in f.parameters.properties %}{{ k }}"
        "{% if k in f.parameters.required %}*{% endif %}{{ ', ' if not loop.last }}{% endfor %}) {{ f.description }}\n"
        "{% endfor %}{{ '<end_of_turn>\\n' }}{% endif %}{% for m in messages if m.role != 'tool' and m.content %}"
        "{{ '<start_of_turn>' + m.role + '\\n' + m.content + '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
    ),
    **chat_templates_with_memory.TEMPLATES,
}  # fmt: skip
