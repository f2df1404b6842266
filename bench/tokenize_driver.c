/* Times tokenising for bench/tokenize: `tokenize_driver VOCABULARY.gguf TEXT...` loads the vocabulary and the texts, says
 * "ready", and for each line "I" on standard input tokenises text I once and answers "NANOSECONDS TOKENS HASH". Only the call
 * itself is timed; special tokens are neither parsed nor added. Built twice: over weir's tokeniser and, with -DUSE_LLAMA, over
 * libllama's. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef USE_LLAMA
#include <llama.h>

static struct llama_model *model;

static void quiet(enum ggml_log_level level, const char *text, void *user) {
    (void)user;
    if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static int open_vocabulary(const char *path) {
    struct llama_model_params parameters = llama_model_default_params();
    llama_log_set(quiet, NULL);
    llama_backend_init();
    parameters.vocab_only = true;
    model = llama_model_load_from_file(path, parameters);
    return model ? 0 : -1;
}

static int64_t tokenise(const char *text, size_t n_bytes, int32_t *ids, size_t capacity) {
    return llama_tokenize(llama_model_get_vocab(model), text, (int32_t)n_bytes, ids, (int32_t)capacity, false, false);
}
#else
#include "gguf/gguf.h"
#include "model/vocab.h"
#include "tok/tok.h"

static tok *vocabulary;

static int open_vocabulary(const char *path) {
    gguf *g = NULL;
    weir_error err = {0};
    if (gguf_open(&g, path, &err) < 0 || model_vocab_open(&vocabulary, g, &err) < 0)
        fprintf(stderr, "%s: %s: %s\n", path, err.place, err.message);
    gguf_close(&g);
    return vocabulary ? 0 : -1;
}

static int64_t tokenise(const char *text, size_t n_bytes, int32_t *ids, size_t capacity) {
    return tok_encode(vocabulary, text, n_bytes, false, false, ids, capacity);
}
#endif

static char *read_file(const char *path, size_t *n_bytes) {
    FILE *f = fopen(path, "rb");
    if (f == NULL || fseek(f, 0, SEEK_END) != 0) return NULL;
    *n_bytes = (size_t)ftell(f);
    rewind(f);
    char *text = malloc(*n_bytes + 1);
    const size_t n = text ? fread(text, 1, *n_bytes, f) : 0;
    fclose(f);
    return n == *n_bytes ? text : NULL;
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t hash(const int32_t *ids, int64_t n) {
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a over the ids */
    for (int64_t i = 0; i < n; i++) h = (h ^ (uint32_t)ids[i]) * 0x100000001b3u;
    return h;
}

int main(int argc, char **argv) {
    enum { MAX_TEXTS = 64 };
    char *texts[MAX_TEXTS], line[64];
    size_t n_bytes[MAX_TEXTS], capacity = 0;
    const int n_texts = argc - 2;
    if (n_texts < 1 || n_texts > MAX_TEXTS || open_vocabulary(argv[1]) != 0) return 1;
    for (int i = 0; i < n_texts; i++) {
        texts[i] = read_file(argv[i + 2], &n_bytes[i]);
        if (texts[i] == NULL) return 1;
        if (n_bytes[i] > capacity) capacity = n_bytes[i];
    }
    capacity = capacity * 4 + 16; /* SPM's byte fallback of an added space */
    int32_t *ids = malloc(capacity * sizeof *ids);
    if (ids == NULL) return 1;
    memset(ids, 0, capacity * sizeof *ids);
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        const int which = atoi(line);
        if (which < 0 || which >= n_texts) return 1;
        const uint64_t before = now();
        const int64_t n = tokenise(texts[which], n_bytes[which], ids, capacity);
        const uint64_t after = now();
        printf("%llu %lld %016llx\n", (unsigned long long)(after - before), (long long)n, (unsigned long long)hash(ids, n));
        fflush(stdout);
    }
    return 0;
}
