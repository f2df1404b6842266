/* Opening a folder, and reading its small files. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "hf/hf_internal.h"

enum { MAX_TEXT_BYTES = 256 << 20 };

int hf_path(const hf_model *m, const char *name, char *out, size_t capacity) {
    const size_t n = strlen(m->dir);
    const char *slash = n > 0 && m->dir[n - 1] == '/' ? "" : "/";
    const int written = snprintf(out, capacity, "%s%s%s", m->dir, slash, name);
    FAIL_IF(written < 0 || (size_t)written >= capacity, m->err, WEIR_E_LIMIT, name, "its path is longer than %zu bytes",
            capacity - 1);
    return 0;
}

bool hf_has(const hf_model *m, const char *name) {
    char path[4096];
    struct stat st;
    return hf_path(m, name, path, sizeof path) == 0 && stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

int hf_read_text(const hf_model *m, const char *name, buf *out) {
    char path[4096];
    if (!hf_has(m, name)) return 0;
    TRY(hf_path(m, name, path, sizeof path));
    FILE *file = fopen(path, "rb");
    FAIL_IF(file == NULL, m->err, WEIR_E_IO, path, "cannot open the file: %s", strerror(errno));
    char piece[65536];
    out->limit = MAX_TEXT_BYTES;
    for (size_t n; !out->failed && (n = fread(piece, 1, sizeof piece, file)) > 0;) buf_append(out, piece, n);
    const int reason = ferror(file) ? errno : 0;
    fclose(file);
    FAIL_IF(reason, m->err, WEIR_E_IO, path, "cannot read the file: %s", strerror(reason));
    FAIL_IF(out->failed, m->err, WEIR_E_LIMIT, path, "is larger than %d MiB, or does not fit in memory", MAX_TEXT_BYTES >> 20);
    if (out->data == NULL) buf_append(out, "", 0);
    return 1;
}

int hf_read_json(const hf_model *m, const char *name, json_t **out) {
    buf text = BUF_INIT;
    json_error_t problem = {0};
    *out = NULL;
    const int found = hf_read_text(m, name, &text);
    /* All numbers as floats: transformers writes 10^30 for a context without end. */
    if (found > 0) *out = json_loadb(text.data ? text.data : "", text.n_bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, &problem);
    buf_free(&text);
    if (found <= 0) return found;
    if (json_is_object(*out)) return 1;
    if (*out) snprintf(problem.text, sizeof problem.text, "is no object");
    json_decref(*out);
    *out = NULL;
    FAIL(m->err, WEIR_E_FORMAT, name, "line %d, column %d: %s", problem.line, problem.column, problem.text);
}

/* The folder's name is the model's, in want of another. */
static void put_name(hf_model *m) {
    size_t n = strlen(m->dir);
    while (n > 1 && m->dir[n - 1] == '/') n--;
    size_t begin = n;
    while (begin > 0 && m->dir[begin - 1] != '/') begin--;
    gguf_build_string(m->builder, "general.name", m->dir + begin, n - begin);
}

static int read_all(hf_model *m) {
    TRY(hf_read_config(m));
    put_name(m);
    TRY(hf_read_tensors(m));
    return hf_read_vocab(m);
}

static int open_folder(gguf **out, const char *path, bool as_ggml, weir_error *err) {
    hf_model m = {.dir = path, .err = err, .as_ggml = as_ggml};
    *out = NULL;
    TRY(gguf_build_open(&m.builder, path, "safetensors", err));
    int rc = read_all(&m);
    if (rc >= 0) rc = gguf_build_finish(&m.builder, out, err);
    gguf_build_close(&m.builder);
    json_decref(m.config);
    return rc < 0 ? rc : 0;
}

bool hf_is_folder(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int hf_open(gguf **out, const char *path, weir_error *err) {
    return hf_is_folder(path) ? open_folder(out, path, false, err) : gguf_open(out, path, err);
}

int hf_open_for_gguf(gguf **out, const char *path, weir_error *err) {
    return open_folder(out, path, true, err);
}
