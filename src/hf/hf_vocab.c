/* The tokeniser of a folder: tokenizer.json whole, which tokens begin and end a text, and the chat template. */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "hf/hf_internal.h"

enum { MAX_ENDS = 16 };

/* ---- special tokens
 * ----------------------------------------------------------------------------------------------------------------- */

typedef struct ends {
    int32_t ids[MAX_ENDS];
    size_t n;
} ends;

static void add_end(ends *e, int32_t id) {
    for (size_t i = 0; i < e->n; i++)
        if (e->ids[i] == id) return;
    if (e->n < MAX_ENDS) e->ids[e->n++] = id;
}

static int read_id(const hf_model *m, const json_t *value, const char *file, const char *key, int32_t *out) {
    char place[96];
    snprintf(place, sizeof place, "%s: %s", file, key);
    const double id = json_number_value(value);
    FAIL_IF(!json_is_number(value) || !(id >= 0 && id < m->n_vocab) || id != (int32_t)id, m->err, WEIR_E_FORMAT, place, "is no token id from 0 to %d",
            m->n_vocab - 1);
    *out = (int32_t)id;
    return 0;
}

/* eos_token_id: an id or a list of ids. */
static int read_ends(const hf_model *m, const json_t *object, const char *file, ends *e) {
    const json_t *value = json_object_get(object, "eos_token_id"), *item;
    int32_t id;
    if (value == NULL || json_is_null(value)) return 0;
    if (!json_is_array(value)) {
        TRY(read_id(m, value, file, "eos_token_id", &id));
        add_end(e, id);
        return 0;
    }
    size_t i;
    json_array_foreach(value, i, item) {
        TRY(read_id(m, item, file, "eos_token_id", &id));
        add_end(e, id);
    }
    return 0;
}

/* The text of a special token: a string, or an object with `content`. */
static const char *token_text(const json_t *config, const char *key) {
    const json_t *value = json_object_get(config, key);
    if (json_is_object(value)) value = json_object_get(value, "content");
    return json_string_value(value);
}

/* The id of an added token, or of one of the model's vocabulary; -1 = none. */
static int32_t token_id(const hf_model *m, const json_t *tokenizer, const char *text) {
    const json_t *added = json_object_get(tokenizer, "added_tokens"), *item;
    const json_t *id = NULL;
    size_t i;
    if (text == NULL) return -1;
    json_array_foreach(added, i, item) {
        const char *content = json_string_value(json_object_get(item, "content"));
        if (content && strcmp(content, text) == 0) id = json_object_get(item, "id");
    }
    if (id == NULL) id = json_object_get(json_object_get(json_object_get(tokenizer, "model"), "vocab"), text);
    const json_int_t value = json_integer_value(id);
    return json_is_integer(id) && value >= 0 && value < m->n_vocab ? (int32_t)value : -1;
}

/* What the three files say of the tokens that begin and end a text. The first that speaks of the beginning counts; of the ends
 * all do, and the tokenizer's own comes first. */
static int put_special(const hf_model *m, const json_t *tokenizer, const json_t *tokenizer_config, int32_t *bos_out,
                       int32_t *eos_out) {
    json_t *generation = NULL;
    ends e = {.n = 0};
    int32_t bos = token_id(m, tokenizer, token_text(tokenizer_config, "bos_token"));
    const int32_t eos = token_id(m, tokenizer, token_text(tokenizer_config, "eos_token"));
    const int32_t pad = token_id(m, tokenizer, token_text(tokenizer_config, "pad_token"));
    TRY(hf_read_json(m, "generation_config.json", &generation));
    if (eos >= 0) add_end(&e, eos);
    int rc = read_ends(m, generation, "generation_config.json", &e);
    if (rc == 0) rc = read_ends(m, m->config, m->config_path, &e);
    const json_t *id = json_object_get(generation, "bos_token_id");
    if (id == NULL) id = json_object_get(m->config, "bos_token_id");
    if (rc == 0 && bos < 0 && json_is_number(id)) rc = read_id(m, id, "config.json", "bos_token_id", &bos);
    json_decref(generation);
    TRY(rc);
    if (bos >= 0) gguf_build_u32(m->builder, "tokenizer.ggml.bos_token_id", (uint32_t)bos);
    if (e.n > 0) gguf_build_u32(m->builder, "tokenizer.ggml.eos_token_id", (uint32_t)e.ids[0]);
    if (e.n > 1) gguf_build_i32s(m->builder, "tokenizer.ggml.eos_token_ids", e.ids, e.n);
    if (pad >= 0) gguf_build_u32(m->builder, "tokenizer.ggml.padding_token_id", (uint32_t)pad);
    *bos_out = bos;
    *eos_out = e.n > 0 ? e.ids[0] : -1;
    return 0;
}

/* ---- chat templates
 * -------------------------------------------------------------------------------------------------------------------- */

/* A template, or the one called "default" of several. */
static const char *template_of(const json_t *config) {
    const json_t *value = json_object_get(config, "chat_template"), *item;
    size_t i;
    if (json_is_string(value)) return json_string_value(value);
    json_array_foreach(value, i, item) {
        const char *name = json_string_value(json_object_get(item, "name"));
        if (name && strcmp(name, "default") == 0) return json_string_value(json_object_get(item, "template"));
    }
    return NULL;
}

static int put_template(const hf_model *m, const json_t *tokenizer_config) {
    static const char key[] = "tokenizer.chat_template";
    buf text = BUF_INIT;
    const int found = hf_read_text(m, "chat_template.jinja", &text);
    if (found > 0) gguf_build_string(m->builder, key, text.data ? text.data : "", text.n_bytes);
    buf_free(&text);
    if (found != 0) return found;
    json_t *own = NULL;
    TRY(hf_read_json(m, "chat_template.json", &own));
    const char *source = template_of(tokenizer_config);
    if (source == NULL) source = template_of(own);
    if (source) gguf_build_string(m->builder, key, source, strlen(source));
    json_decref(own);
    return 0;
}

/* ---- the tokeniser
 * ----------------------------------------------------------------------------------------------------------------------- */

static int put_all(hf_model *m, const buf *text) {
    int32_t bos = -1, eos = -1;
    json_error_t problem;
    json_t *config = NULL, *tokenizer = json_loadb(text->data, text->n_bytes, JSON_ALLOW_NUL, &problem);
    int rc = tokenizer ? 0
                       : error_set(m->err, WEIR_E_FORMAT, "tokenizer.json", "line %d, column %d: %s", problem.line,
                                   problem.column, problem.text);
    if (rc == 0) rc = hf_read_json(m, "tokenizer_config.json", &config);
    if (rc >= 0) rc = put_special(m, tokenizer, config, &bos, &eos);
    if (rc >= 0) rc = put_template(m, config);
    if (rc >= 0 && m->as_ggml)
        rc = hf_put_ggml_vocab(m, tokenizer, text->data, text->n_bytes, bos, eos);
    else if (rc >= 0)
        gguf_build_string(m->builder, "tokenizer.huggingface.json", text->data, text->n_bytes);
    json_decref(tokenizer);
    json_decref(config);
    return rc < 0 ? rc : 0;
}

int hf_read_vocab(hf_model *m) {
    buf text = BUF_INIT;
    int rc = hf_read_text(m, "tokenizer.json", &text);
    if (rc == 0) {
        const bool sentencepiece = hf_has(m, "tokenizer.model") || hf_has(m, "spiece.model");
        const bool legacy = hf_has(m, "vocab.json") || hf_has(m, "merges.txt");
        rc = error_set(
            m->err, sentencepiece || legacy ? WEIR_E_UNSUPPORTED : WEIR_E_IO, m->dir,
            sentencepiece
                ? "the folder has tokenizer.model but no tokenizer.json; SentencePiece files are not read. transformers writes "
                  "tokenizer.json: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            : legacy ? "the folder has vocab.json and merges.txt but no tokenizer.json, which transformers writes: "
                       "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
                     : "the folder has no tokenizer.json");
    } else if (rc > 0) {
        rc = put_all(m, &text);
    }
    buf_free(&text);
    return rc;
}
