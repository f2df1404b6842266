/* tokenizer.json: what opens also encodes and decodes: ids are in range, counting agrees with writing, the text is UTF-8. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "tok/tok_json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition) {
    if (!condition) abort();
}

static void check(const tok *t, const char *text, size_t n_bytes, bool add_special, bool parse_special) {
    const int64_t n = tok_encode(t, text, n_bytes, add_special, parse_special, NULL, 0);
    if (n == WEIR_E_NOMEM) return; /* the file's steps blow the text up beyond the limit */
    require(n >= 0);
    int32_t *ids = malloc((size_t)n * sizeof *ids + 1);
    require(ids && tok_encode(t, text, n_bytes, add_special, parse_special, ids, (size_t)n) == n);
    for (int64_t i = 0; i < n; i++) {
        size_t piece_bytes;
        require(ids[i] >= 0 && ids[i] < tok_n_vocab(t));
        require(tok_piece(t, ids[i], add_special, &piece_bytes) != NULL);
    }
    buf out = BUF_INIT;
    const int rc = tok_decode(t, ids, (size_t)n, parse_special, &out, NULL);
    require(rc == 0 || rc == WEIR_E_NOMEM);
    require(rc < 0 || utf8_valid(out.data ? out.data : "", out.n_bytes));
    buf_free(&out);
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char text[] = "Hello  world 123 a\xcc\x81\xe2\x96\x81\xe6\xbc\xa2 \xf0\x9f\x98\x80<s>x\n\xff\t ab ab";
    const tok_vocab extra = {.bos = -1, .eos = -1, .eot = -1, .eom = -1, .unk = -1, .sep = -1};
    tok *t = NULL;
    weir_error err = {0};
    if (tok_open_json(&t, (const char *)data, size, &extra, &err) < 0) {
        require(t == NULL && err.place[0] && err.message[0]);
        return 0;
    }
    check(t, text, sizeof text - 1, true, false);
    check(t, text, sizeof text - 1, false, true);
    check(t, (const char *)data, size < 512 ? size : 512, true, true);
    tok_close(&t);
    return 0;
}
