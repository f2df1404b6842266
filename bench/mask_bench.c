/* Times token masks over a model's vocabulary: `mask_bench MODEL.gguf [WALKS]`. Each walk goes through one of the schemas below with
 * random allowed tokens, as a model of high temperature would; what is timed is constraint_mask, the first visit of a state
 * included. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/constraint.h"

#include "timing.h"

enum { MAX_TIMES = 1 << 20, MAX_STEPS = 200 };

static const char *const schemas[] = {
    ("{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\"},\"age\":{\"type\":\"integer\",\"minimum\":0,\"maximum\":150},\"tags\":{\"type\":\"array\","
     "\"items\":{\"type\":\"string\"}}},\"required\":[\"name\",\"age\"]}"),
    "{\"type\":\"object\",\"properties\":{\"id\":{\"type\":\"string\",\"maxLength\":20},\"text\":{\"type\":\"string\",\"maxLength\":200}},\"required\":[\"id\",\"text\"]}",
    "{\"type\":\"object\"}",
    "{\"type\":\"array\",\"items\":{\"anyOf\":[{\"enum\":[\"red\",\"green\",\"blue\"]},{\"type\":\"number\"},{\"type\":\"string\",\"pattern\":\"^[A-Z]{2}[0-9]+$\"}]}}",
};
enum { N_SCHEMAS = sizeof schemas / sizeof schemas[0] };

static uint64_t state = 1;
static uint32_t below(uint32_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % n;
}

/* A random one of the tokens of the mask; -1 = none. */
static int32_t pick(const uint32_t *mask, size_t n_words) {
    int32_t n = 0, chosen = -1;
    for (size_t i = 0; i < n_words; i++) n += __builtin_popcount(mask[i]);
    int32_t k = n ? (int32_t)below((uint32_t)n) : -1;
    for (size_t i = 0; i < n_words && k >= 0; i++)
        for (uint32_t word = mask[i]; word && k >= 0; word &= word - 1)
            if (k-- == 0) chosen = (int32_t)(32 * i) + __builtin_ctz(word);
    return chosen;
}

int main(int argc, char **argv) {
    static double times[MAX_TIMES];
    weir_model *model = NULL;
    weir_grammars *grammars = NULL;
    weir_error err = {0};
    const weir_model_options options = {.vocab_only = true};
    if (argc < 2 || weir_model_open(&model, argv[1], &options, &err) < 0) return fprintf(stderr, "%s %s\n", err.place, err.message), 1;
    double start = now_us();
    if (weir_grammars_open(&grammars, model, &err) < 0) return 1;
    int n_walks = argc > 2 ? atoi(argv[2]) : 30;
    printf("vocabulary of %d tokens, prepared in %.0f ms\n\n| schema | compiled in us | masks | median us | p99 us | worst us |\n|---|---|---|---|---|---|\n",
           weir_model_get_info(model)->n_vocab, (now_us() - start) / 1000);
    size_t n_words = ((size_t)weir_model_get_info(model)->n_vocab + 31) / 32;
    for (int s = 0; s < N_SCHEMAS; s++) {
        weir_grammar *g = NULL;
        start = now_us();
        if (weir_grammar_open(&g, grammars, WEIR_GRAMMAR_JSON_SCHEMA, schemas[s], strlen(schemas[s]), &err) < 0) return 1;
        double compiled = now_us() - start;
        size_t n = 0;
        for (int walk = 0; walk < n_walks; walk++) {
            constraint *c = NULL;
            if (constraint_open(&c, g, NULL, NULL, 0, &err) < 0) return 1;
            for (int step = 0; step < MAX_STEPS && n < MAX_TIMES; step++) {
                const uint32_t *mask = NULL;
                start = now_us();
                if (constraint_mask(c, &mask, &err) != CONSTRAINT_MASK) break;
                times[n++] = now_us() - start;
                int32_t token = pick(mask, n_words);
                size_t n_bytes = 0;
                const char *bytes = token < 0 ? NULL : weir_token_bytes(model, token, false, &n_bytes);
                if (bytes == NULL || constraint_accept(c, bytes, n_bytes, &err) < 0) break;
            }
            constraint_close(&c);
        }
        qsort(times, n, sizeof times[0], by_value);
        printf("| %.60s... | %.0f | %zu | %.1f | %.1f | %.1f |\n", schemas[s], compiled, n, times[n / 2], times[n * 99 / 100], times[n - 1]);
        weir_grammar_close(&g);
    }
    weir_grammars_close(&grammars);
    weir_model_close(&model);
    return 0;
}
