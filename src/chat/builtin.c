/* See builtin.h. Each template states the turn format of its family and no more: no tools, no reasoning. */
#include "chat/builtin.h"

#include <string.h>

#define CONTENT "m['content']"
#define TRIMMED "m['content'] | trim"
#define GENERATION(text) "{% if add_generation_prompt %}{{ '" text "' }}{% endif %}"

/* Turns between markers that name the role: OPEN role CLOSE content END; `generation` begins the answer. */
#define TURNS(open, close, content, end, generation)                                                                           \
    "{% for m in messages %}{{ '" open "' + m['role'] + '" close "' + " content " + '" end                                     \
    "' }}{% endfor %}" GENERATION(generation)

/* Turns with markers of their own for each role. */
#define ROLES(content, system, system_end, user, user_end, assistant, assistant_end, generation)                               \
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ '" system "' + " content " + '" system_end "' }}"                 \
    "{% elif m['role'] == 'assistant' %}{{ '" assistant "' + " content " + '" assistant_end "' }}"                             \
    "{% else %}{{ '" user "' + " content " + '" user_end "' }}{% endif %}{% endfor %}" GENERATION(generation)

/* A leading system message is taken out of the list, for formats that have no turn for it. */
#define TAKE_SYSTEM                                                                                                            \
    "{% if messages and messages[0]['role'] == 'system' %}"                                                                    \
    "{% set system = messages[0]['content'] | trim %}{% set turns = messages[1:] %}"                                           \
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"

/* [INST] turns: a turn goes from a first message to the end of an answer. `lead` stands before [INST] and [/INST], `trail`
 * after [INST] and before the answer. */
#define MISTRAL(lead, trail, answer)                                                                                           \
    "{% set ns = namespace(inside=false) %}{% for m in messages %}"                                                            \
    "{% if not ns.inside %}{{ '" lead "[INST]" trail "' }}{% set ns.inside = true %}{% endif %}"                               \
    "{% if m['role'] == 'system' %}{{ m['content'] + '\\n\\n' }}"                                                              \
    "{% elif m['role'] == 'assistant' %}{{ '" trail "' + " answer " + eos_token }}{% set ns.inside = false %}"                 \
    "{% else %}{{ m['content'] + '" lead "[/INST]' }}{% endif %}{% endfor %}"

#define LLAMA2(content, bos)                                                                                                   \
    "{{ '[INST] ' }}{% set ns = namespace(inside=true) %}{% for m in messages %}"                                              \
    "{% if not ns.inside %}{{ " bos "'[INST] ' }}{% set ns.inside = true %}{% endif %}"                                        \
    "{% if m['role'] == 'system' %}{{ '<<SYS>>\\n' + " content " + '\\n<</SYS>>\\n\\n' }}"                                     \
    "{% elif m['role'] == 'assistant' %}{{ " content " + eos_token }}{% set ns.inside = false %}"                              \
    "{% else %}{{ " content " + ' [/INST]' }}{% endif %}{% endfor %}"

static const struct {
    const char *name, *source;
} templates[] = {
    /* by name */
    {"alpaca",
     TAKE_SYSTEM "{% if system %}{{ system + '\\n\\n' }}{% endif %}"
                 "{% for m in turns %}{% if m['role'] == 'user' %}{{ '### Instruction:\\n' + m['content'] + '\\n\\n' }}"
                 "{% else %}{{ '### Response:\\n' + m['content'] + eos_token + '\\n\\n' }}{% endif %}{% endfor %}"
                 "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"},
    {"bailing", ROLES(CONTENT, "<role>SYSTEM</role>", "", "<role>HUMAN</role>", "", "<role>ASSISTANT</role>", "",
                      "<role>ASSISTANT</role>")},
    {"bailing-think", ROLES(CONTENT, "<role>SYSTEM</role>", "", "<role>HUMAN</role>", "", "<role>ASSISTANT</role>", "",
                            "<role>ASSISTANT</role><think>")},
    {"bailing2",
     "{% if not messages or messages[0]['role'] != 'system' %}<role>SYSTEM</role>detailed thinking off<|role_end|>{% endif "
     "%}" ROLES(CONTENT, "<role>SYSTEM</role>", "<|role_end|>", "<role>HUMAN</role>", "<|role_end|>", "<role>ASSISTANT</role>",
                "<|role_end|>", "<role>ASSISTANT</role>")},
    {"chatglm3", "[gMASK]sop" TURNS("<|", "|>\\n ", CONTENT, "", "<|assistant|>")},
    {"chatglm4", "[gMASK]<sop>" TURNS("<|", "|>\\n", CONTENT, "", "<|assistant|>\\n")},
    {"chatml", TURNS("<|im_start|>", "\\n", CONTENT, "<|im_end|>\\n", "<|im_start|>assistant\\n")},
    {"command-r", "{{ bos_token }}{% set names = {'user': 'USER', 'assistant': 'CHATBOT', 'system': 'SYSTEM'} %}"
                  "{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|><|' + names[m['role']] | default('USER') + '_TOKEN|>' + "
                  "m['content'] | trim + "
                  "'<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
                  "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"},
    {"deepseek", ROLES(CONTENT, "", "", "### Instruction:\\n", "\\n", "### Response:\\n", "\\n<|EOT|>\\n", "### Response:\\n")},
    {"deepseek-ocr", "{% for m in messages %}{{ m['content'] }}{% endfor %}"},
    {"deepseek2", ROLES(CONTENT, "", "\\n\\n", "User: ", "\\n\\n", "Assistant: ", "<｜end▁of▁sentence｜>", "Assistant:")},
    {"deepseek3",
     ROLES(CONTENT, "", "\\n\\n", "<｜User｜>", "", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<｜Assistant｜>")},
    {"exaone-moe", TURNS("<|", "|>\\n", TRIMMED, "<|endofturn|>\\n", "<|assistant|>\\n")},
    {"exaone3",
     ROLES(TRIMMED, "[|system|]", "[|endofturn|]\\n", "[|user|]", "\\n", "[|assistant|]", "[|endofturn|]\\n", "[|assistant|]")},
    {"exaone4",
     ROLES(TRIMMED, "[|system|]", "[|endofturn|]\\n", "[|user|]", "\\n", "[|assistant|]", "[|endofturn|]\\n", "[|assistant|]")},
    {"falcon3", TURNS("<|", "|>\\n", CONTENT, "\\n", "<|assistant|>\\n")},
    {"gemma",
     "{{ bos_token }}" TAKE_SYSTEM "{% for m in turns %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
     "{{ '<start_of_turn>' + role + '\\n' }}{% if loop.first and system %}{{ system + '\\n\\n' }}{% endif %}"
     "{{ m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
     "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"},
    {"gigachat", "{{ bos_token }}" ROLES(CONTENT, "", "<|message_sep|>", "user<|role_sep|>",
                                         "<|message_sep|>available functions<|role_sep|>[]<|message_sep|>",
                                         "assistant<|role_sep|>", "<|message_sep|>", "assistant<|role_sep|>")},
    {"glmedge", TURNS("<|", "|>\\n", CONTENT, "", "<|assistant|>")},
    {"gpt-oss", "{% for m in messages %}{{ '<|start|>' + m['role'] + '<|message|>' + m['content'] + "
                "('<|return|>' if m['role'] == 'assistant' else '<|end|>') }}{% endfor %}" GENERATION("<|start|>assistant")},
    {"granite",
     TURNS("<|start_of_role|>", "<|end_of_role|>", CONTENT, "<|end_of_text|>\\n", "<|start_of_role|>assistant<|end_of_role|>")},
    {"granite-4.0",
     TURNS("<|start_of_role|>", "<|end_of_role|>", CONTENT, "<|end_of_text|>\\n", "<|start_of_role|>assistant<|end_of_role|>")},
    {"granite-4.1",
     TURNS("<|start_of_role|>", "<|end_of_role|>", CONTENT, "<|end_of_text|>\\n", "<|start_of_role|>assistant<|end_of_role|>")},
    {"grok-2",
     "{% set names = {'system': 'System: ', 'assistant': 'Assistant: '} %}{% for m in messages %}"
     "{{ names[m['role']] | default('Human: ') + (m['content'] if m['role'] == 'assistant' else m['content'] | trim) + "
     "'<|separator|>\\n\\n' }}{% endfor %}" GENERATION("Assistant:")},
    {"hunyuan-dense", ROLES(CONTENT, "", "<｜hy_place▁holder▁no▁3｜>", "<｜hy_User｜>", "<｜hy_Assistant｜>",
                            "<｜hy_Assistant｜>", "<｜hy_place▁holder▁no▁2｜>", "")},
    {"hunyuan-moe", ROLES(CONTENT, "<|startoftext|>", "<|extra_4|>", "<|startoftext|>", "<|extra_0|>", "", "<|eos|>", "")},
    {"hunyuan-vl", "<｜hy_begin▁of▁sentence｜>" ROLES(CONTENT, "", "<｜hy_place▁holder▁no▁3｜>", "", "<｜hy_User｜>", "",
                                                      "<｜hy_Assistant｜>", "")},
    {"kimi-k2", ROLES(CONTENT, "<|im_system|>system<|im_middle|>", "<|im_end|>", "<|im_user|>user<|im_middle|>", "<|im_end|>",
                      "<|im_assistant|>assistant<|im_middle|>", "<|im_end|>", "<|im_assistant|>assistant<|im_middle|>")},
    {"llama2", TAKE_SYSTEM "{% for m in turns %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' }}"
                           "{% if loop.first and system %}{{ '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' }}{% endif %}"
                           "{{ m['content'] | trim + ' [/INST]' }}"
                           "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"},
    {"llama2-sys", LLAMA2(CONTENT, "")},
    {"llama2-sys-bos", LLAMA2(CONTENT, "bos_token + ")},
    {"llama2-sys-strip", LLAMA2(TRIMMED, "")},
    {"llama3", "{{ bos_token }}" TURNS("<|start_header_id|>", "<|end_header_id|>\\n\\n", TRIMMED, "<|eot_id|>",
                                       "<|start_header_id|>assistant<|end_header_id|>\\n\\n")},
    {"llama4", "{{ bos_token }}" TURNS("<|header_start|>", "<|header_end|>\\n\\n", TRIMMED, "<|eot|>",
                                       "<|header_start|>assistant<|header_end|>\\n\\n")},
    {"megrez", TURNS("<|role_start|>", "<|role_end|>", CONTENT, "<|turn_end|>", "<|role_start|>assistant<|role_end|>")},
    {"minicpm", ROLES(TRIMMED, "", "", "<用户>", "<AI>", "", "", "")},
    {"mistral", "{{ bos_token }}" TAKE_SYSTEM "{% for m in turns %}{% if m['role'] == 'user' %}{{ '[INST] ' }}"
                "{% if loop.last and system %}{{ system + '\\n\\n' }}{% endif %}{{ m['content'] + ' [/INST]' }}"
                "{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"},
    {"mistral-v1", MISTRAL(" ", " ", CONTENT)},
    {"mistral-v3", MISTRAL("", " ", TRIMMED)},
    {"mistral-v3-tekken", MISTRAL("", "", CONTENT)},
    {"mistral-v7", ROLES(CONTENT, "[SYSTEM_PROMPT] ", "[/SYSTEM_PROMPT]", "[INST] ", "[/INST]", " ", "</s>", "")},
    {"mistral-v7-tekken", ROLES(CONTENT, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]", "", "</s>", "")},
    {"monarch", "{% for m in messages %}{{ ('' if loop.first else '<s>') + m['role'] + '\\n' + m['content'] + '</s>\\n' }}{% "
                "endfor %}" GENERATION("<s>assistant\\n")},
    {"openchat", ROLES(CONTENT, "", "<|end_of_turn|>", "GPT4 Correct User: ", "<|end_of_turn|>",
                       "GPT4 Correct Assistant: ", "<|end_of_turn|>", "GPT4 Correct Assistant:")},
    {"orion",
     TAKE_SYSTEM "{% for m in turns %}{% if m['role'] == 'assistant' %}{{ m['content'] + '</s>' }}{% else %}{{ 'Human: ' }}"
                 "{% if loop.first and system %}{{ system + '\\n\\n' }}{% endif %}"
                 "{{ m['content'] + '\\n\\nAssistant: </s>' }}{% endif %}{% endfor %}"},
    {"pangu-embedded", "{% if not messages or messages[0]['role'] != 'system' %}[unused9]系统：[unused10]{% endif %}" ROLES(
                           CONTENT, "[unused9]系统：", "[unused10]", "[unused9]用户：", "[unused10]", "[unused9]助手：",
                           "[unused10]", "[unused9]助手：")},
    {"phi3", TURNS("<|", "|>\\n", CONTENT, "<|end|>\\n", "<|assistant|>\\n")},
    {"phi4", TURNS("<|im_start|>", "<|im_sep|>", CONTENT, "<|im_end|>", "<|im_start|>assistant<|im_sep|>")},
    {"rwkv-world", ROLES(TRIMMED, "System: ", "\\n\\n", "User: ", "\\n\\n", "Assistant: ", "\\n\\n", "Assistant:")},
    {"seed_oss",
     "{% for m in messages %}{{ '<seed:bos>' + m['role'] + '\\n' + (m['content'] | trim if m['role'] == 'assistant' "
     "else m['content']) + '<seed:eos>' }}{% endfor %}" GENERATION("<seed:bos>assistant\\n")},
    {"smolvlm", "<|im_start|>" ROLES(CONTENT, "", "\\n\\n", "User: ", "<end_of_utterance>\\n",
                                     "Assistant: ", "<end_of_utterance>\\n", "Assistant:")},
    {"solar-open", TURNS("<|begin|>", "<|content|>", CONTENT, "<|end|>", "<|begin|>assistant")},
    {"vicuna", ROLES(CONTENT, "", "\\n\\n", "USER: ", "\\n", "ASSISTANT: ", "</s>\\n", "ASSISTANT:")},
    {"vicuna-orca", ROLES(CONTENT, "SYSTEM: ", "\\n", "USER: ", "\\n", "ASSISTANT: ", "</s>\\n", "ASSISTANT:")},
    {"yandex", ROLES(CONTENT, "", "\\n\\n", " Пользователь: ", "\\n\\n", " Ассистент: ", "\\n\\n", " Ассистент:[SEP]")},
    {"zephyr", "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' }}{% endfor %}"
               "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"},
};

enum { N_TEMPLATES = sizeof templates / sizeof templates[0] };

const char *chat_builtin_template(const char *name) {
    for (size_t i = 0; i < N_TEMPLATES; i++)
        if (strcmp(templates[i].name, name) == 0) return templates[i].source;
    return NULL;
}

const char *chat_builtin_name(size_t index) {
    return index < N_TEMPLATES ? templates[index].name : NULL;
}
