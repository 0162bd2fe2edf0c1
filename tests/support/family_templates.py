"""Small chat templates that behave as those of the model families: the same roles, refusals, variables and markup.

The words are our own. Each has what its family's template does with system text, tools, calls, results and reasoning.
"""

from __future__ import annotations

_OPENAI_TOOLS = "{% for t in tools %}{{ t | tojson }}\n{% endfor %}"

#: Tools in the first user turn, one call in a turn, content of a call not rendered, role ipython for results.
LLAMA3 = """
{{- bos_token }}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}{% if tools %}{{ 'Environment: ipython\n' }}{% endif %}
{{- 'Today: ' + strftime_now('%Y') + '\n\n' + system + '<|eot_id|>' }}
{%- if tools %}
    {%- if messages | length == 0 %}{{ raise_exception('There is no first user message for the tools.') }}{% endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\n\nAnswer with {"name": ..., "parameters": ...}.\n\n' }}
    {%- for t in tools %}{{ t | tojson(indent=4) + '\n\n' }}{% endfor %}
    {{- messages[0].content | trim + '<|eot_id|>' }}{% set messages = messages[1:] %}
{%- endif %}
{%- for m in messages %}
    {%- if 'tool_calls' in m %}
        {%- if m.tool_calls | length != 1 %}{{ raise_exception('Only single calls.') }}{% endif %}
        {%- set call = m.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson + '}<|eot_id|>' }}
    {%- elif m.role in ('tool', 'ipython') %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + m.content | tojson + '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}
"""

_CHATML_TOOLS = (
    """
{%- if tools %}
    {{- '<|im_start|>system\n' }}{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}
    {{- '# Tools\n<tools>\n' }}"""
    + _OPENAI_TOOLS
    + """
    {{- '</tools>\nAnswer with <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}"""
)
_CHATML_CALLS = """
        {%- for c in m.tool_calls or [] %}
            {{- '\n<tool_call>\n{"name": "' + c.function.name + '", "arguments": ' + c.function.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}"""
_CHATML_RESULTS = """
    {%- elif m.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"""

#: Results of one turn are one message of the user.
QWEN25 = (
    _CHATML_TOOLS
    + """
{%- for m in messages %}
    {%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' + m.content }}"""
    + _CHATML_CALLS
    + """
        {{- '<|im_end|>\n' }}"""
    + _CHATML_RESULTS
    + """
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""
)

#: As Qwen2.5. Reasoning is kept behind the user's last question only; an empty one switches it off.
QWEN3 = (
    _CHATML_TOOLS
    + """
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
    {%- elif m.role == 'assistant' %}
        {%- set content = m.content.split('</think>')[-1].lstrip('\n') %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > ns.last and (loop.last or m.reasoning_content) %}
            {{- '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}
        {%- endif %}
        {{- content }}"""
    + _CHATML_CALLS
    + """
        {{- '<|im_end|>\n' }}"""
    + _CHATML_RESULTS
    + """
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}
"""
)

#: No tools. Other roles are not rendered, and nothing is refused.
PHI35 = """
{%- for m in messages %}
    {%- if m.role == 'system' and m.content %}{{ '<|system|>\n' + m.content + '<|end|>\n' }}
    {%- elif m.role == 'user' %}{{ '<|user|>\n' + m.content + '<|end|>\n' }}
    {%- elif m.role == 'assistant' %}{{ '<|assistant|>\n' + m.content + '<|end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}
"""

#: The tools are JSON text in the system message. Calls are not rendered.
PHI4_MINI = """
{%- for m in messages %}
    {%- if m.role == 'system' and 'tools' in m and m.tools is not none %}
        {{- '<|system|>' + m.content + '<|tool|>' + m.tools + '<|/tool|><|end|>' }}
    {%- else %}
        {{- '<|' + m.role + '|>' + m.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}
"""

_MISTRAL_CHECKS = """
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}{% endif %}
{%- set ns = namespace(i=0) %}
{%- for m in messages if not (m.role == 'tool' or (m.tool_calls is defined and m.tool_calls is not none)) %}
    {%- if (m.role == 'user') != (ns.i % 2 == 0) %}{{ raise_exception('Roles must alternate.') }}{% endif %}
    {%- set ns.i = ns.i + 1 %}
{%- endfor %}
{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}
{{- bos_token }}"""
_MISTRAL_TOOLS = """
        {%- if tools and m == users[-1] %}
            {{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}"""
_MISTRAL_RESULTS = """
    {%- elif m.role == 'tool' %}
        {%- if m.tool_call_id | length != 9 %}{{ raise_exception('Ids have nine characters.') }}{% endif %}
        {{- '[TOOL_RESULTS] {"content": ' + m.content | string + ', "call_id": "' + m.tool_call_id + '"}' }}
        {{- '[/TOOL_RESULTS]' }}
    {%- else %}{{ raise_exception('Only user and assistant roles are supported.') }}
    {%- endif %}
{%- endfor %}
"""

#: The system text and the tools are in the last user turn. Calls are an array, with ids of nine characters.
MISTRAL_V3 = (
    _MISTRAL_CHECKS
    + """
{%- for m in messages %}
    {%- if m.role == 'user' %}"""
    + _MISTRAL_TOOLS
    + """
        {{- '[INST] ' + (system + '\n\n' if loop.last and system is defined else '') + m.content + '[/INST]' }}
    {%- elif m.tool_calls is defined and m.tool_calls is not none %}
        {{- '[TOOL_CALLS] [' }}
        {%- for c in m.tool_calls %}
            {%- if c.id | length != 9 %}{{ raise_exception('Ids have nine characters.') }}{% endif %}
            {{- (c.function | tojson)[:-1] + ', "id": "' + c.id + '"}' + (']' + eos_token if loop.last else ', ') }}
        {%- endfor %}
    {%- elif m.role == 'assistant' %}{{ ' ' + m.content | trim + eos_token }}"""
    + _MISTRAL_RESULTS
)

#: The system text has its own markers, and a call has its name before its arguments (versions 7 to 13).
MISTRAL_V7 = (
    _MISTRAL_CHECKS
    + """
{%- if system is defined %}{{ '[SYSTEM_PROMPT]' + system + '[/SYSTEM_PROMPT]' }}{% endif %}
{%- for m in messages %}
    {%- if m.role == 'user' %}"""
    + _MISTRAL_TOOLS
    + """
        {{- '[INST]' + m.content + '[/INST]' }}
    {%- elif m.tool_calls is defined and m.tool_calls is not none %}
        {%- for c in m.tool_calls %}
            {{- '[TOOL_CALLS]' + c.function.name + '[ARGS]' + c.function.arguments | tojson }}
        {%- endfor %}
        {{- eos_token }}
    {%- elif m.role == 'assistant' %}{{ m.content + eos_token }}"""
    + _MISTRAL_RESULTS
)

#: A result must have the name of its function. The content of a message with calls is not rendered.
HERMES = (
    """
{{- bos_token }}
{%- if tools %}
    {{- '<|im_start|>system\n<tools>\n' }}"""
    + _OPENAI_TOOLS
    + """
    {{- '</tools>\nAnswer with <tool_call>\n{"arguments": ..., "name": ...}\n</tool_call><|im_end|>\n' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role in ('user', 'system') or (m.role == 'assistant' and m.tool_calls is not defined) %}
        {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|im_start|>assistant' }}
        {%- for c in m.tool_calls %}
            {{- '\n<tool_call>\n{"arguments": ' + c.function.arguments | tojson + ', "name": "' + c.function.name }}
            {{- '"}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif m.role == 'tool' %}
        {%- if not m.name is defined %}{{ raise_exception("A tool response needs a 'name'.") }}{% endif %}
        {{- '<|im_start|>tool\n<tool_response>\n{"name": "' + m.name + '", "content": ' + m.content | tojson }}
        {{- '}\n</tool_response><|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""
)

#: No tools. Calls only in a message without content, with arguments as text. Reasoning is cut from the content.
DEEPSEEK_R1_DISTILL = """
{%- set ns = namespace(system='') %}
{%- for m in messages %}{% if m.role == 'system' %}{% set ns.system = m.content %}{% endif %}{% endfor %}
{{- bos_token + ns.system }}
{%- for m in messages %}
    {%- if m.role == 'user' %}{{ '<｜User｜>' + m.content }}
    {%- elif m.role == 'assistant' and m.content is none %}
        {{- '<｜Assistant｜><｜tool▁calls▁begin｜>' }}
        {%- for c in m.tool_calls %}
            {{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + c.function.name }}
            {{- '\n```json\n' + c.function.arguments + '\n```<｜tool▁call▁end｜>' }}
        {%- endfor %}
        {{- '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}
    {%- elif m.role == 'assistant' %}
        {{- '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}
    {%- elif m.role == 'tool' %}{{ '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}
"""

#: No tools and no system turn: its text goes before the first user turn, where roles alternate strictly.
GEMMA3 = """
{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set prefix = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}
{%- else %}{% set prefix = '' %}{% endif %}
{%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate.') }}{% endif %}
    {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (prefix if loop.first else '') }}
    {{- m.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}
"""

#: Tools in a separate turn. Calls are not rendered. `thinking` asks for reasoning.
GRANITE3 = """
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}
{%- elif tools %}{% set system = 'Answer with <|tool_call|> and a JSON list of tools.' %}
{%- elif thinking %}{% set system = 'Write thoughts between <think></think>, the answer in <response></response>.' %}
{%- else %}{% set system = 'You are an assistant.' %}{% endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\n' }}
{%- if tools %}
    {{- '<|start_of_role|>available_tools<|end_of_role|>' + tools | tojson(indent=4) + '<|end_of_text|>\n' }}
{%- endif %}
{%- for m in messages %}
    {{- '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' }}
    {%- if loop.last and add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}
{%- endfor %}
"""

#: No tools. The token before the text is also the one behind each answer.
OLMO2 = """
{{- bos_token }}
{%- for m in messages %}
    {%- if m.role in ('system', 'user') %}{{ '<|' + m.role + '|>\n' + m.content + '\n' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|assistant|>\n' + m.content + eos_token + ('' if loop.last else '\n') }}
    {%- endif %}
    {%- if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}
{%- endfor %}
"""

#: The tools have another variable. Calls are not rendered, and only the first system message is.
SMOLLM3 = """
{%- if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}
{{- '<|im_start|>system\nReasoning Mode: ' + ('/think' if enable_thinking else '/no_think') + '\n\n' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}
{%- if xml_tools %}
    {{- '<tools>\n' }}{% for t in xml_tools[:] %}{{ (t | string) + '\n' }}{% endfor %}
    {{- '</tools>\nAnswer with <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call>\n\n' }}
{%- endif %}
{{- '<|im_end|>\n' }}
{%- for m in messages %}
    {%- set content = m.content if m.content is string else '' %}
    {%- if m.role in ('user', 'tool') %}{{ '<|im_start|>user\n' + content + '<|im_end|>\n' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' + ('' if enable_thinking else '<think>\n\n</think>\n') }}
        {{- content.lstrip('\n') + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' + ('' if enable_thinking else '<think>\n\n</think>\n') }}
{%- endif %}
"""

FAMILIES = {
    "Llama 3.1, 3.2": LLAMA3,
    "Qwen2.5": QWEN25,
    "Qwen3": QWEN3,
    "Phi-3.5": PHI35,
    "Phi-4-mini": PHI4_MINI,
    "Mistral v3": MISTRAL_V3,
    "Mistral v7": MISTRAL_V7,
    "Hermes": HERMES,
    "DeepSeek-R1-Distill": DEEPSEEK_R1_DISTILL,
    "Gemma 3": GEMMA3,
    "Granite 3": GRANITE3,
    "OLMo 2": OLMO2,
    "SmolLM3": SMOLLM3,
}
