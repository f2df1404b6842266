/* Times one token's sampling at a vocabulary of 151,936: `sampler_bench [ROUNDS]`. Logits are normal with a few likely tokens, in
 * eight sets that do not fit in the near cache together; the figure is the median over rounds of draw and accept. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sampler.h"

#include "timing.h"

enum { N_VOCAB = 151936, N_SETS = 8, MAX_ROUNDS = 100000 };

static uint64_t state = 1;
static double uniform(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return ((double)(state >> 11) + 0.5) * 0x1p-53;
}

static void measure(const char *name, const weir_sampling *p, const uint32_t *mask, const float *logits, int rounds) {
    static double us[MAX_ROUNDS];
    sampler *s = NULL;
    weir_error err = {0};
    const sampler_vocab vocab = {.n_tokens = N_VOCAB, .n_history = rounds + 1024};
    if (sampler_open(&s, p, &vocab, &err) < 0) exit(1);
    for (int i = 0; i < 1024; i++) sampler_accept(s, (int32_t)(uniform() * 2000));
    for (int i = 0; i < rounds; i++) {
        double start = now_us();
        int32_t token = sampler_draw(s, logits + (size_t)(i % N_SETS) * N_VOCAB, mask);
        sampler_accept(s, token);
        us[i] = now_us() - start;
    }
    sampler_close(&s);
    qsort(us, (size_t)rounds, sizeof us[0], by_value);
    printf("| %-44s | %8.1f | %8.1f |\n", name, us[rounds / 2], us[rounds * 99 / 100]);
}

int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 2000;
    if (rounds < 1 || rounds > MAX_ROUNDS) return 2;
    float *logits = malloc((size_t)N_SETS * N_VOCAB * sizeof *logits);
    uint32_t *few = calloc(N_VOCAB / 32 + 1, sizeof *few), *many = calloc(N_VOCAB / 32 + 1, sizeof *many);
    if (!logits || !few || !many) return 1;
    for (size_t i = 0; i < (size_t)N_SETS * N_VOCAB; i++)
        logits[i] = (float)(2 * sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform()));
    for (int set = 0; set < N_SETS; set++)
        for (int i = 0; i < 20; i++) logits[(size_t)set * N_VOCAB + (size_t)(uniform() * N_VOCAB)] = (float)(12 + 8 * uniform());
    for (int i = 0; i < 200; i++) few[(int)(uniform() * N_VOCAB) / 32] |= 1u << (int)(uniform() * 32);
    for (int i = 0; i < N_VOCAB / 32; i++) many[i] = UINT32_MAX << (int)(uniform() * 8);
    weir_sampling base = {.temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .typical_p = 1, .repetition_penalty = 1,
                          .penalty_last_n = 64, .dry_base = 1.75f, .dry_allowed_length = 2, .dry_penalty_last_n = -1, .xtc_threshold = 0.1f,
                          .mirostat_tau = 5, .mirostat_eta = 0.1f},
                  p = base;
    printf("| chain (vocabulary %d) | median us | p99 us |\n|---|---|---|\n", N_VOCAB);
    measure("(warming up)", &p, NULL, logits, rounds);
    measure("default", &p, NULL, logits, rounds);
    p.temperature = 0, measure("greedy", &p, NULL, logits, rounds), p = base;
    p.repetition_penalty = 1.1f, measure("default, repetition penalty 1.1", &p, NULL, logits, rounds), p = base;
    p.dry_multiplier = 0.8f, measure("default, DRY 0.8 over 1,024 tokens and more", &p, NULL, logits, rounds), p = base;
    p.top_n_sigma = 1, measure("default, top-n-sigma 1", &p, NULL, logits, rounds), p = base;
    p.xtc_probability = 0.5f, measure("default, XTC 0.5", &p, NULL, logits, rounds), p = base;
    p.top_k = 0, measure("without top-k", &p, NULL, logits, rounds), p = base;
    p.top_k = 0, p.top_p = 1, p.min_p = 0, measure("temperature only", &p, NULL, logits, rounds), p = base;
    p.top_k = 0, p.top_p = 1, measure("min-p and temperature", &p, NULL, logits, rounds), p = base;
    p.mirostat = 2, measure("mirostat 2", &p, NULL, logits, rounds), p = base;
    measure("default, a mask of 200 tokens", &p, few, logits, rounds);
    measure("default, a mask of most tokens", &p, many, logits, rounds);
    free(logits);
    free(few);
    free(many);
    return 0;
}
