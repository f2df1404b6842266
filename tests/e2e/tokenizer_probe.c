/* Answers questions about tokenisers, one JSON object a line: for tests that compare many tokenizer.json with another
 * implementation. {"open": PATH} opens one (and closes the one before), {"encode": TEXT, "special": BOOL, "parse": BOOL} and
 * {"decode": [ID...], "special": BOOL} use it. An answer is {"ids": [...]}, {"text": ..., "pieces": ...}, {"ok": true} or
 * {"error": ...}. "pieces" are the tokens' own bytes put together, as a stream has them. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tok/tok_json.h"

static json_t *failure(const weir_error *err) {
    return json_pack("{s:o}", "error", json_sprintf("%s: %s", err->place, err->message));
}

static json_t *open_file(tok **t, const char *path) {
    buf text = BUF_INIT;
    weir_error err = {0};
    FILE *file = fopen(path, "rb");
    tok_close(t);
    if (file == NULL) return json_pack("{s:s}", "error", "cannot open the file");
    char piece[65536];
    for (size_t n; (n = fread(piece, 1, sizeof piece, file)) > 0;) buf_append(&text, piece, n);
    fclose(file);
    const tok_vocab extra = {.bos = -1, .eos = -1, .eot = -1, .eom = -1, .unk = -1, .sep = -1};
    const int rc = tok_open_json(t, text.data ? text.data : "", text.n_bytes, &extra, &err);
    buf_free(&text);
    return rc < 0 ? failure(&err) : json_pack("{s:b}", "ok", 1);
}

static json_t *encode(const tok *t, const json_t *question) {
    const json_t *text = json_object_get(question, "encode");
    const bool special = json_is_true(json_object_get(question, "special")),
               parse = json_is_true(json_object_get(question, "parse"));
    const int64_t n = tok_encode(t, json_string_value(text), json_string_length(text), special, parse, NULL, 0);
    int32_t *ids = calloc((size_t)(n < 0 ? 0 : n) + 1, sizeof *ids);
    if (n < 0 || ids == NULL ||
        tok_encode(t, json_string_value(text), json_string_length(text), special, parse, ids, (size_t)n) != n) {
        free(ids);
        return json_pack("{s:s}", "error", "encoding failed");
    }
    json_t *list = json_array();
    for (int64_t i = 0; i < n; i++) json_array_append_new(list, json_integer(ids[i]));
    free(ids);
    return json_pack("{s:o}", "ids", list);
}

static json_t *decode(const tok *t, const json_t *question) {
    const json_t *list = json_object_get(question, "decode");
    const bool special = json_is_true(json_object_get(question, "special"));
    const size_t n = json_array_size(list);
    int32_t *ids = calloc(n + 1, sizeof *ids);
    buf out = BUF_INIT, pieces = BUF_INIT;
    weir_error err = {0};
    tok_stream s = TOK_STREAM_INIT;
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    json_t *answer;
    if (tok_decode(t, ids, n, special, &out, &err) < 0) {
        answer = failure(&err);
    } else {
        for (size_t i = 0; i < n; i++) {
            size_t n_bytes;
            const char *piece = tok_piece(t, ids[i], special, &n_bytes);
            tok_stream_push(&s, piece, n_bytes, &pieces);
        }
        tok_stream_finish(&s, &pieces);
        answer = json_pack("{s:s%,s:s%}", "text", out.data ? out.data : "", out.n_bytes, "pieces",
                           pieces.data ? pieces.data : "", pieces.n_bytes);
    }
    buf_free(&out);
    buf_free(&pieces);
    free(ids);
    return answer;
}

int main(void) {
    tok *t = NULL;
    char *line = NULL;
    size_t capacity = 0;
    for (ssize_t n; (n = getline(&line, &capacity, stdin)) > 0;) {
        json_t *question = json_loadb(line, (size_t)n, JSON_ALLOW_NUL, NULL), *answer = NULL;
        const char *path = json_string_value(json_object_get(question, "open"));
        if (path)
            answer = open_file(&t, path);
        else if (t == NULL)
            answer = json_pack("{s:s}", "error", "no tokeniser is open");
        else
            answer = json_object_get(question, "encode") ? encode(t, question) : decode(t, question);
        char *text = json_dumps(answer, JSON_COMPACT);
        puts(text ? text : "{\"error\":\"no memory for the answer\"}");
        fflush(stdout);
        free(text);
        json_decref(answer);
        json_decref(question);
    }
    free(line);
    tok_close(&t);
    return 0;
}
