/* tokenizer.json files with one thing wrong: each is refused with the path in the file and the reason. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above */
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "tok/tok_json.h"

#define BPE(more) "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]" more "}"

static const struct {
    const char *text, *says; /* NULL: it opens */
} cases[] = {
    {"{" BPE("") "}", NULL},
    {"", "line 1"},
    {"[]", "no JSON object"},
    {"{}", "tokenizer.json: model"},
    {"{\"model\":{\"type\":\"RNN\"}}", "the model 'RNN' is not supported"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":[],\"merges\":[]}}", "model.vocab"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":\"0\"},\"merges\":[]}}", "'a' is no integer"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}", "id -1"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":2147483648},\"merges\":[]}}", "id 2147483648"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", "both have the id 0"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a c\"]}}",
     "model.merges[0]: 'c' is not in the vocabulary"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[[\"a\",\"a\"]]}}", "makes 'aa'"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a\"]}}", "model.merges[0]: is not two tokens"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":{}}}", "model.merges"},
    {"{" BPE(",\"unk_token\":\"?\"") "}", "model.unk_token: '?'"},
    {"{" BPE(",\"fuse_unk\":1") "}", "model.fuse_unk"},
    {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",0.0]]}}", "model.unk_id"},
    {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\"]],\"unk_id\":0}}", "model.vocab[0]"},
    {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",0.0]],\"unk_id\":1}}", "model.unk_id"},
    {"{\"model\":{\"type\":\"WordPiece\",\"vocab\":{\"a\":0}}}", "model.unk_token"},
    {"{" BPE("") ",\"normalizer\":{\"type\":\"Bidi\"}}", "normalizer.type: the normalizer 'Bidi' is not supported"},
    {"{" BPE("") ",\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"Strip\",\"strip_"
                 "left\":\"yes\"}]}}",
     "normalizer.normalizers[1].strip_left"},
    {"{" BPE("") ",\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"(\"},\"content\":\"\"}}",
     "normalizer.pattern.Regex"},
    {"{" BPE("") ",\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"\"}}",
     "normalizer.pattern.String"},
    {"{" BPE("") ",\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"!\"}}", "is not base64"},
    {"{" BPE("") ",\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"/////w==\"}}", "precompiled_charsmap"},
    {"{" BPE("") ",\"pre_tokenizer\":{\"type\":\"UnicodeScripts\"}}", "the pre-tokenizer 'UnicodeScripts' is not supported"},
    {"{" BPE("") ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a&&b]\"},\"behavior\":\"Isolated\"}}",
     "intersection"},
    {"{" BPE("") ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[\"},\"behavior\":\"Isolated\"}}",
     "class without an end"},
    {"{" BPE("") ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\\\\\"},\"behavior\":\"Isolated\"}}",
     "backslash"},
    {"{" BPE("") ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":\"Sometimes\"}}",
     "'Sometimes'"},
    {"{" BPE("") ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"__\"}}", "exactly one character"},
    {"{" BPE("") ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"prepend_scheme\":\"often\"}}", "'often'"},
    {"{" BPE("") ",\"decoder\":{\"type\":\"CTC\"}}", "the decoder 'CTC' is not supported"},
    {"{" BPE("") ",\"decoder\":{\"type\":\"Strip\",\"start\":-1}}", "decoder.start"},
    {"{" BPE("") ",\"post_processor\":{\"type\":\"Magic\"}}", "the post-processor 'Magic' is not supported"},
    {"{" BPE("") ",\"post_processor\":{\"type\":\"BertProcessing\",\"cls\":[\"a\",9],\"sep\":[\"b\",1]}}",
     "post_processor.cls"},
    {"{" BPE("") ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"B\"}}]}}",
     "post_processor.single[0]"},
    {"{" BPE("") ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}}]}}",
     "no ids for 'x'"},
    {"{" BPE("") ",\"added_tokens\":[{\"content\":\"x\"}]}", "added_tokens[0].id"},
    {"{" BPE("") ",\"added_tokens\":[{\"id\":0,\"content\":\"x\"}]}", "both have the id 0"},
    {"{" BPE("") ",\"added_tokens\":[{\"id\":3}]}", "added_tokens[0].content"},
    {"{" BPE("") ",\"added_tokens\":[{\"id\":3,\"content\":\"x\",\"special\":\"no\"}]}", "added_tokens[0].special"},
    {"{" BPE("") "," BPE("") "}", "duplicate"},
};

static void bad_files(void **state) {
    (void)state;
    const tok_vocab extra = {.bos = -1, .eos = -1, .eot = -1, .eom = -1, .unk = -1, .sep = -1};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tok *t = NULL;
        weir_error err = {0};
        char whole[sizeof err.place + sizeof err.message + 3];
        const int rc = tok_open_json(&t, cases[i].text, strlen(cases[i].text), &extra, &err);
        snprintf(whole, sizeof whole, "%s: %s", err.place, err.message);
        if (cases[i].says == NULL ? rc != 0 : rc >= 0 || strstr(whole, cases[i].says) == NULL)
            fail_msg("case %zu (%s): %d, '%s', wanted '%s'", i, cases[i].text, rc, whole,
                     cases[i].says ? cases[i].says : "success");
        assert_true((t != NULL) == (rc == 0));
        tok_close(&t);
    }
}

/* Sequences that nest for ever, and lists that never end, are refused. */
static void deep(void **state) {
    (void)state;
    const tok_vocab extra = {.bos = -1, .eos = -1, .eot = -1, .eom = -1, .unk = -1, .sep = -1};
    tok *t = NULL;
    weir_error err = {0};
    buf text = BUF_INIT;
    buf_puts(&text, "{" BPE("") ",\"normalizer\":");
    for (int i = 0; i < 40; i++) buf_puts(&text, "{\"type\":\"Sequence\",\"normalizers\":[");
    buf_puts(&text, "{\"type\":\"NFC\"}");
    for (int i = 0; i < 40; i++) buf_puts(&text, "]}");
    buf_puts(&text, "}");
    assert_int_equal(tok_open_json(&t, text.data, text.n_bytes, &extra, &err), WEIR_E_LIMIT);
    buf_clear(&text);
    buf_puts(&text, "{" BPE("") ",\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"}");
    for (int i = 0; i < 200; i++) buf_puts(&text, ",{\"type\":\"Fuse\"}");
    buf_puts(&text, "]}}");
    assert_int_equal(tok_open_json(&t, text.data, text.n_bytes, &extra, &err), WEIR_E_LIMIT);
    buf_free(&text);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(bad_files), cmocka_unit_test(deep)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
