/* See builtin.h. Each template states the turn format of its family and no more: no tools, no reasoning. */
#include "chat/builtin.h"

#include <string.h>

/* Turns between markers: OPEN role CLOSE content END. */
#define TURNS(open, close, end)                                                                                                \
    "{% for message in messages %}{{ '" open "' + message['role'] + '" close "' + message['content'] + '" end                  \
    "' }}{% endfor %}"                                                                                                         \
    "{% if add_generation_prompt %}{{ '" open "assistant" close "' }}{% endif %}"

/* A leading system message is taken out of the list, for formats that have no turn for it. */
#define TAKE_SYSTEM                                                                                                            \
    "{% if messages and messages[0]['role'] == 'system' %}"                                                                    \
    "{% set system = messages[0]['content'] | trim %}{% set turns = messages[1:] %}"                                           \
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"

static const struct {
    const char *name, *source;
} templates[] = {
    {"alpaca",
     TAKE_SYSTEM "{% if system %}{{ system + '\\n\\n' }}{% endif %}"
                 "{% for m in turns %}{% if m['role'] == 'user' %}{{ '### Instruction:\\n' + m['content'] + '\\n\\n' }}"
                 "{% else %}{{ '### Response:\\n' + m['content'] + eos_token + '\\n\\n' }}{% endif %}{% endfor %}"
                 "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"},
    {"chatml", TURNS("<|im_start|>", "\\n", "<|im_end|>\\n")},
    {"command-r", "{{ bos_token }}{% set names = {'user': 'USER', 'assistant': 'CHATBOT', 'system': 'SYSTEM'} %}"
                  "{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|><|' + names[m['role']] | default('USER') + '_TOKEN|>' + "
                  "m['content'] | trim + "
                  "'<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
                  "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"},
    {"deepseek", "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ 'User: ' + m['content'] + '\\n\\n' }}"
                 "{% elif m['role'] == 'assistant' %}{{ 'Assistant: ' + m['content'] + eos_token }}"
                 "{% else %}{{ m['content'] + '\\n\\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' "
                 "}}{% endif %}"},
    {"gemma",
     "{{ bos_token }}" TAKE_SYSTEM "{% for m in turns %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
     "{{ '<start_of_turn>' + role + '\\n' }}{% if loop.first and system %}{{ system + '\\n\\n' }}{% endif %}"
     "{{ m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
     "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"},
    {"granite",
     "{% for m in messages %}{{ '<|start_of_role|>' + m['role'] + '<|end_of_role|>' + m['content'] + '<|end_of_text|>\\n' }}"
     "{% endfor %}{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"},
    {"llama2", TAKE_SYSTEM "{% for m in turns %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' }}"
                           "{% if loop.first and system %}{{ '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' }}{% endif %}"
                           "{{ m['content'] | trim + ' [/INST]' }}"
                           "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"},
    {"llama3", "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + "
               "m['content'] | trim + "
               "'<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ "
               "'<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"},
    {"mistral", "{{ bos_token }}" TAKE_SYSTEM "{% for m in turns %}{% if m['role'] == 'user' %}{{ '[INST] ' }}"
                "{% if loop.last and system %}{{ system + '\\n\\n' }}{% endif %}{{ m['content'] + ' [/INST]' }}"
                "{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"},
    {"phi3", TURNS("<|", "|>\\n", "<|end|>\\n")},
    {"vicuna", TAKE_SYSTEM "{% if system %}{{ system + '\\n\\n' }}{% endif %}"
                           "{% for m in turns %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + '\\n' }}"
                           "{% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token + '\\n' }}{% endif %}{% endfor %}"
                           "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"},
    {"zephyr", "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' }}{% endfor %}"
               "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"},
};

enum { N_TEMPLATES = sizeof templates / sizeof templates[0] };

const char *chat_builtin_template(const char *name) {
    for (size_t i = 0; i < N_TEMPLATES; i++)
        if (strcmp(templates[i].name, name) == 0) return templates[i].source;
    return NULL;
}

const char *const *chat_builtin_names(void) {
    static const char *const names[N_TEMPLATES + 1] = {
        "alpaca", "chatml",  "command-r", "deepseek", "gemma",  "granite", "llama2",
        "llama3", "mistral", "phi3",      "vicuna",   "zephyr", NULL,
    };
    return names;
}
