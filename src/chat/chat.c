/* The chat templates of the public library (weir.h): a compiled template and the texts of its model's special tokens. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "chat/jinja.h"
#include "weir/weir.h"

struct weir_chat {
    jinja_template *template;
    char *bos, *eos, *source;
};

int weir_chat_open(weir_chat **out, const char *source, const char *bos, const char *eos, weir_error *err) {
    *out = NULL;
    weir_chat *chat = calloc(1, sizeof *chat);
    FAIL_IF(chat == NULL, err, WEIR_E_NOMEM, "chat template", "out of memory");
    chat->bos = strdup(bos ? bos : "");
    chat->eos = strdup(eos ? eos : "");
    chat->source = strdup(source);
    int result = chat->bos && chat->eos && chat->source ? jinja_compile(&chat->template, source, strlen(source), err)
                                        : error_set(err, WEIR_E_NOMEM, "chat template", "out of memory");
    if (result < 0) {
        weir_chat_close(&chat);
        return result;
    }
    *out = chat;
    return 0;
}

void weir_chat_close(weir_chat **chat) {
    if (*chat == NULL) return;
    jinja_template_close(&(*chat)->template);
    free((*chat)->bos);
    free((*chat)->eos);
    free((*chat)->source);
    free(*chat);
    *chat = NULL;
}

const char *weir_chat_source(const weir_chat *chat) { return chat->source; }

int weir_chat_render(const weir_chat *chat, const char *variables_json, size_t n_bytes, char **text, size_t *text_bytes,
                     weir_error *err) {
    const jinja_default defaults[] = {{"bos_token", chat->bos}, {"eos_token", chat->eos}};
    return jinja_render(chat->template, variables_json, n_bytes, defaults, 2, NULL, text, text_bytes, err);
}
