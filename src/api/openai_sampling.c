/* The members of a request that are lists of the sampler: samplers, dry_sequence_breakers; see openai_decode.h. */
#include <string.h>

#include "api/openai_decode.h"
#include "api/openai_request.h"

static int decode_breakers(openai_request *out, openai_error *error) {
    const json_t *list = openai_get_array(out->body, "dry_sequence_breakers", error);
    size_t count = json_array_size(list);
    if (!list) return 0;
    if (count > WEIR_MAX_DRY_BREAKERS) {
        openai_error_add(error, 400, "invalid_value", "dry_sequence_breakers",
                         "'dry_sequence_breakers' must have at most %d strings, not %zu", WEIR_MAX_DRY_BREAKERS, count);
        return 0;
    }
    const char **breakers = arena_array(&out->memory, count, sizeof *breakers);
    if (!breakers) return WEIR_E_NOMEM;
    for (size_t i = 0; i < count; i++) {
        const json_t *item = json_array_get(list, i);
        char param[48];
        snprintf(param, sizeof param, "dry_sequence_breakers[%zu]", i);
        breakers[i] = json_string_value(item);
        if (!breakers[i] || json_string_length(item) != strlen(breakers[i]) || strlen(breakers[i]) > WEIR_MAX_BREAKER_BYTES)
            openai_error_add(error, 400, breakers[i] ? "invalid_value" : "invalid_type", param,
                             "'%s' must be a string of at most %d bytes without U+0000", param, WEIR_MAX_BREAKER_BYTES);
    }
    out->job.sampling.dry_breakers = breakers;
    out->job.sampling.n_dry_breakers = count;
    return 0;
}

/* A list of names, or a string with a letter for each, as llama-server takes them. */
static void decode_samplers(openai_request *out, openai_error *error) {
    const json_t *value = openai_member(out->body, "samplers");
    weir_sampling *sampling = &out->job.sampling;
    const char *letters = json_string_value(value);
    size_t count = letters ? strlen(letters) : json_array_size(value);
    if (!value) return;
    if (!letters && !json_is_array(value)) {
        openai_error_add(error, 400, "invalid_type", "samplers", "'samplers' must be a list of names or a string of letters, not %s",
                         openai_type_name(value));
        return;
    }
    if (count == 0 || count > WEIR_MAX_CHAIN) {
        openai_error_add(error, 400, "invalid_value", "samplers", "'samplers' must name 1 to %d samplers, not %zu", WEIR_MAX_CHAIN, count);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        const char letter[2] = {letters ? letters[i] : '\0', '\0'};
        const char *name = letters ? letter : json_string_value(json_array_get(value, i));
        int sampler = name ? weir_sampler_named(name) : -1;
        char param[32];
        snprintf(param, sizeof param, letters ? "samplers" : "samplers[%zu]", i);
        if (sampler < 0) {
            openai_error_add(error, 400, "invalid_value", param,
                             "'%s' is no sampler: penalties, dry, top_n_sigma, top_k, typ_p, top_p, min_p, xtc, temperature (or edskypmxt)",
                             param);
            return;
        }
        sampling->chain[sampling->n_chain++] = (uint8_t)sampler;
    }
}

int openai_sampling_decode(openai_request *out, openai_error *error) {
    decode_samplers(out, error);
    return decode_breakers(out, error);
}
