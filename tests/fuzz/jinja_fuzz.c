/* The template language on arbitrary source: whatever compiles is rendered twice with fixed variables and tight limits. The
 * text has to be UTF-8 and the same both times. */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "chat/jinja.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char variables[] =
    "{\"l\":[3,1,2],\"d\":{\"b\":1,\"a\":[2,{\"x\":null}]},\"s\":\"Hello World\",\"n\":5,\"f\":2.5,\"t\":true,\"u8\":\"na\xc3\xafve \xe6\x97\xa5\","
    "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"yo\"}],\"nn\":null}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const struct tm noon = {.tm_year = 126, .tm_mday = 15, .tm_hour = 12, .tm_wday = 4, .tm_yday = 14};
    const jinja_options options = {.max_steps = 100000, .max_memory_bytes = 8 << 20, .max_output_bytes = 1 << 20, .now = &noon};
    jinja_template *t;
    weir_error e;
    char *text[2] = {NULL, NULL};
    size_t n[2] = {0, 0};
    if (jinja_compile(&t, (const char *)data, size, &e) < 0) return 0;
    for (int i = 0; i < 2; i++) {
        int result = jinja_render(t, variables, sizeof variables - 1, NULL, 0, &options, &text[i], &n[i], &e);
        if (result == 0 && !utf8_valid(text[i], n[i])) abort();
        if ((result == 0) != (text[i] != NULL)) abort();
    }
    if (n[0] != n[1] || (n[0] && memcmp(text[0], text[1], n[0]) != 0)) abort();
    free(text[0]);
    free(text[1]);
    jinja_template_close(&t);
    return 0;
}
