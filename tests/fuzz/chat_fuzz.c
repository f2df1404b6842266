/* Conversations: arbitrary JSON as the variables of a built-in template (the first byte chooses) and of one that prints and
 * measures whatever it is given. */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "chat/builtin.h"
#include "weir/weir.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char everything[] = "{% for m in messages %}{{ m }}{{ m | tojson }}{{ m | string | length }}{{ m | pprint }}"
                                 "{% if m is mapping %}{% for k, v in m | dictsort %}{{ k }}{{ v }}{% endfor %}{% endif %}{% endfor %}";

static void render(const char *source, const char *json, size_t n_bytes) {
    weir_chat *chat;
    weir_error e;
    char *text;
    size_t n;
    if (weir_chat_open(&chat, source, "<s>", "</s>", &e) < 0) abort();
    if (weir_chat_render(chat, json, n_bytes, &text, &n, &e) == 0 && !utf8_valid(text, n)) abort();
    free(text);
    weir_chat_close(&chat);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    size_t n_names = 0;
    if (size == 0) return 0;
    while (chat_builtin_name(n_names)) n_names++;
    render(chat_builtin_template(chat_builtin_name(data[0] % n_names)), (const char *)data + 1, size - 1);
    render(everything, (const char *)data + 1, size - 1);
    return 0;
}
