/* Types of tensors that the table of formats lacks, for messages: what they were or are, and which supported one is nearest. The
 * numbers are those of ggml's enumeration of types, past (ggml's history) and in a fork of it (ik_llama.cpp). */
#include <stdio.h>

#include "quant/quant.h"

static const char given_up[] = "which ggml gave up before GGUF";
static const char repacked[] = "rows of a supported type interleaved for one processor, which ggml now does when it loads a file";
static const char forked[] = "a type of ik_llama.cpp";
static const char forked_rows[] = "a supported type with its rows interleaved by ik_llama.cpp";

static const struct {
    uint32_t type;
    const char *name, *what;
    quant_type nearest;
} unknowns[] = {
    {4, "Q4_2", given_up, QUANT_Q4_0},
    {5, "Q4_3", given_up, QUANT_Q4_1},
    {31, "Q4_0_4_4", repacked, QUANT_Q4_0},
    {32, "Q4_0_4_8", repacked, QUANT_Q4_0},
    {33, "Q4_0_8_8", repacked, QUANT_Q4_0},
    {36, "I2_S or IQ4_NL_4_4", "the ternary type of BitNet's tools, or repacked rows that ggml gave up", QUANT_TQ2_0},
    {37, "IQ4_NL_4_8", repacked, QUANT_IQ4_NL},
    {38, "IQ4_NL_8_8", repacked, QUANT_IQ4_NL},
    {133, "Q6_0", forked, QUANT_Q6_K},
    {134, "IQ1_BN", forked, QUANT_TQ1_0},
    {135, "IQ2_BN", forked, QUANT_TQ2_0},
    {137, "IQ2_K", forked, QUANT_IQ2_S},
    {138, "IQ3_K", forked, QUANT_IQ3_S},
    {139, "IQ4_K", forked, QUANT_IQ4_NL},
    {140, "IQ5_K", forked, QUANT_Q5_K},
    {141, "IQ6_K", forked, QUANT_Q6_K},
    {144, "IQ4_KS", forked, QUANT_IQ4_XS},
    {145, "IQ2_KS", forked, QUANT_IQ2_XS},
    {146, "IQ4_KSS", forked, QUANT_IQ4_XS},
    {151, "Q8_KV", forked, QUANT_Q8_0},
    {152, "IQ5_KS", forked, QUANT_Q5_K},
    {153, "IQ2_KT", forked, QUANT_IQ2_XXS},
    {154, "IQ3_KT", forked, QUANT_IQ3_XXS},
    {155, "IQ4_KT", forked, QUANT_IQ4_XS},
    {156, "IQ3_KS", forked, QUANT_IQ3_XXS},
    {157, "IQ2_KL", forked, QUANT_Q2_K},
    {158, "IQ1_KT", forked, QUANT_IQ1_M},
    {202, "Q4_0_R8", forked_rows, QUANT_Q4_0},
    {206, "Q5_0_R4", forked_rows, QUANT_Q5_0},
    {208, "Q8_0_R8", forked_rows, QUANT_Q8_0},
    {210, "Q2_K_R4", forked_rows, QUANT_Q2_K},
    {211, "Q3_K_R4", forked_rows, QUANT_Q3_K},
    {212, "Q4_K_R4", forked_rows, QUANT_Q4_K},
    {213, "Q5_K_R4", forked_rows, QUANT_Q5_K},
    {214, "Q6_K_R4", forked_rows, QUANT_Q6_K},
    {216, "IQ2_XXS_R4", forked_rows, QUANT_IQ2_XXS},
    {217, "IQ2_XS_R4", forked_rows, QUANT_IQ2_XS},
    {218, "IQ3_XXS_R4", forked_rows, QUANT_IQ3_XXS},
    {219, "IQ1_S_R4", forked_rows, QUANT_IQ1_S},
    {220, "IQ4_NL_R4", forked_rows, QUANT_IQ4_NL},
    {221, "IQ3_S_R4", forked_rows, QUANT_IQ3_S},
    {222, "IQ2_S_R4", forked_rows, QUANT_IQ2_S},
    {223, "IQ4_XS_R8", forked_rows, QUANT_IQ4_XS},
    {229, "IQ1_M_R4", forked_rows, QUANT_IQ1_M},
    {230, "BF16_R16", forked_rows, QUANT_BF16},
};

enum { N_UNKNOWNS = sizeof unknowns / sizeof unknowns[0] };

static size_t find(uint32_t type) {
    size_t i = 0;
    while (i < N_UNKNOWNS && unknowns[i].type != type) i++;
    return i;
}

const char *quant_unknown_name(uint32_t type) {
    const size_t i = find(type);
    return i < N_UNKNOWNS ? unknowns[i].name : NULL;
}

void quant_explain_unknown(uint32_t type, char *text, size_t capacity) {
    const size_t i = find(type);
    if (i < N_UNKNOWNS) {
        snprintf(text, capacity, "tensor type %u is %s, %s; it is not supported, the nearest supported type is %s: convert or quantise "
                                 "the model again",
                 type, unknowns[i].name, unknowns[i].what, quant_format_of(unknowns[i].nearest)->name);
        return;
    }
    size_t n_rows, n = (size_t)snprintf(text, capacity, "tensor type %u is not known; supported are", type);
    const quant_format *table = quant_format_table(&n_rows);
    for (size_t k = 0; k < n_rows && n < capacity; k++)
        if (table[k].dequantise) n += (size_t)snprintf(text + n, capacity - n, " %s", table[k].name);
}
