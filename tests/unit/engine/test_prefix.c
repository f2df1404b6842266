/* The prefix tree: its bookkeeping under random use, and that a sequence which takes from it goes on with the same bits as one that
 * computed everything, for models of several families, on every instruction-set level. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/engine.h"
#include "engine/pages.h"
#include "fault/tiny_model.h"
#include "kern/kern.h"

/* ---- bookkeeping ------------------------------------------------------------------------------------------------------ */

enum { N_PAGES = 40, PAGE = 4, N_HOLDERS = 6, MAX_TEXT = 64 };

static uint64_t random_state = 7;

static uint32_t below(uint32_t n) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % n;
}

typedef struct holder {
    int32_t tokens[MAX_TEXT], n_tok, pages[MAX_TEXT / PAGE], n_pages, n_kept;
    uint64_t salt;
} holder;

static int32_t store[N_PAGES][PAGE]; /* what was written to the pages */
static int32_t n_snapshots;

static void drop(void *user, void *snapshot) {
    assert_ptr_equal(user, &n_snapshots);
    free(snapshot);
    n_snapshots--;
}

static void let_go(pages *p, holder *h) {
    while (h->n_pages > 0) pages_drop(p, h->pages[--h->n_pages]);
    h->n_tok = h->n_kept = 0;
}

/* A text of few letters, so that many begin alike: what is kept of it is taken, the rest written. */
static void begin(pages *p, holder *h) {
    h->n_tok = 1 + (int32_t)below(MAX_TEXT - 1);
    h->salt = below(3) == 0;
    for (int32_t i = 0; i < h->n_tok; i++) h->tokens[i] = below(8) == 0;
    for (int32_t i = 0; i < h->n_tok; i += PAGE) {
        const int32_t here = h->n_tok - i < PAGE ? h->n_tok - i : PAGE, after = h->n_pages ? h->pages[h->n_pages - 1] : PAGES_NONE;
        int32_t page = PAGES_NONE;
        if (here == PAGE && h->n_kept == h->n_pages) page = pages_find(p, h->salt, after, h->tokens + i);
        if (page != PAGES_NONE) {
            assert_memory_equal(store[page], h->tokens + i, sizeof store[page]);
            pages_hold(p, page);
            h->n_kept++;
        } else {
            const int32_t available = pages_n_available(p);
            page = pages_take(p);
            assert_int_equal(page == PAGES_NONE, available == 0);
            if (page == PAGES_NONE) {
                let_go(p, h);
                return;
            }
            assert_false(pages_shared(p, page));
            memcpy(store[page], h->tokens + i, (size_t)here * sizeof(int32_t));
        }
        h->pages[h->n_pages++] = page;
    }
}

static void keep(pages *p, holder *h, bool last) {
    while (h->n_kept < h->n_pages) {
        const int32_t i = h->n_kept, here = h->n_tok - i * PAGE < PAGE ? h->n_tok - i * PAGE : PAGE;
        if (here < PAGE && !last) return;
        const int32_t own = h->pages[i], kept = pages_keep(p, h->salt, i ? h->pages[i - 1] : PAGES_NONE, own, h->tokens + i * PAGE, here);
        assert_memory_equal(store[kept], h->tokens + i * PAGE, (size_t)here * sizeof(int32_t));
        if (below(3) == 0 && pages_snapshot(p, kept) == NULL) {
            pages_attach(p, kept, malloc(1));
            n_snapshots++;
        }
        if (here < PAGE) return;
        if (kept != own) {
            pages_hold(p, kept);
            pages_drop(p, own);
            h->pages[i] = kept;
        }
        h->n_kept++;
    }
}

static bool visit(void *user, const pages_entry *entry) {
    bool *seen = user;
    assert_false(seen[entry->page]);
    assert_true(entry->after == PAGES_NONE || seen[entry->after]);
    assert_memory_equal(store[entry->page], entry->tokens, (size_t)entry->n_tok * sizeof(int32_t));
    seen[entry->page] = true;
    return true;
}

static void test_bookkeeping(void **state) {
    (void)state;
    pages *p = NULL;
    holder holders[N_HOLDERS] = {0};
    int64_t n_found = 0;
    assert_int_equal(pages_open(&p, N_PAGES, PAGE, drop, &n_snapshots, NULL), 0);
    for (int round = 0; round < 100000; round++) {
        holder *h = &holders[below(N_HOLDERS)];
        if (h->n_pages == 0) {
            begin(p, h);
            n_found += h->n_kept;
        } else if (below(3)) {
            keep(p, h, false);
        } else {
            if (below(4)) keep(p, h, true);
            let_go(p, h);
        }
        if (below(500) == 0) pages_forget_one(p);
        bool held[N_PAGES] = {false}, seen[N_PAGES] = {false};
        int32_t n_held = 0;
        for (int i = 0; i < N_HOLDERS; i++)
            for (int32_t j = 0; j < holders[i].n_pages; j++) held[holders[i].pages[j]] = true;
        for (int32_t i = 0; i < N_PAGES; i++) n_held += held[i];
        assert_int_equal(pages_n_used(p), n_held);
        assert_int_equal(pages_n_available(p), N_PAGES - n_held);
        if (round % 50) continue;
        assert_true(pages_visit(p, visit, seen));
        int32_t n_idle = 0;
        for (int32_t i = 0; i < N_PAGES; i++) n_idle += seen[i] && !held[i];
        assert_int_equal(pages_n_kept(p), n_idle);
    }
    assert_true(n_found > 10000);
    for (int i = 0; i < N_HOLDERS; i++) let_go(p, &holders[i]);
    assert_int_equal(pages_n_used(p), 0);
    while (pages_forget_one(p)) {}
    assert_int_equal(pages_n_kept(p), 0);
    pages_close(&p);
    assert_int_equal(n_snapshots, 0);
}

/* What was used last is given up last, and never before what stands behind it. */
static void test_least_recently_used_goes_first(void **state) {
    (void)state;
    pages *p = NULL;
    int32_t tokens[8] = {1, 2, 3, 4, 5, 6, 7, 8}, other[4] = {9, 9, 9, 9}, n;
    assert_int_equal(pages_open(&p, 3, PAGE, NULL, NULL, NULL), 0);
    const int32_t a = pages_take(p), b = pages_take(p), c = pages_take(p);
    assert_int_equal(pages_keep(p, 0, PAGES_NONE, a, tokens, PAGE), a);
    assert_int_equal(pages_keep(p, 0, a, b, tokens + 4, 3), b);
    assert_int_equal(pages_keep(p, 0, PAGES_NONE, c, other, PAGE), c);
    pages_drop(p, c);
    pages_drop(p, b);
    pages_drop(p, a);
    assert_int_equal(pages_find_part(p, 0, a, (int32_t[]){5, 6, 0}, 3, &n), b);
    assert_int_equal(n, 2);
    assert_int_equal(pages_find_part(p, 1, a, (int32_t[]){5, 6, 0}, 3, &n), PAGES_NONE);
    assert_int_equal(pages_take(p), c);
    assert_int_equal(pages_take(p), b);
    assert_int_equal(pages_find(p, 0, PAGES_NONE, tokens), a);
    assert_int_equal(pages_take(p), a);
    assert_int_equal(pages_find(p, 0, PAGES_NONE, tokens), PAGES_NONE);
    assert_int_equal(pages_take(p), PAGES_NONE);
    pages_drop(p, a);
    pages_close(&p);
}

/* ---- the engine ------------------------------------------------------------------------------------------------------- */

enum { N_CTX = 256, N_TEXT = 200, N_GENERATED = 4 };

static const char *const levels[] = {"reference", "avx2", "avx512"};
static const char *const families[] = {"llama", "deepseek2", "mamba", "mamba2", "jamba", "falcon-h1", "lfm2"};
static char model_path[] = "/tmp/weir-test-prefix-XXXXXX", cache_path[] = "/tmp/weir-test-prefix-file-XXXXXX";

static int make_path(void **state) {
    (void)state;
    int fd = mkstemp(model_path);
    const int cache = mkstemp(cache_path);
    return fd < 0 || cache < 0 ? -1 : close(fd) | close(cache);
}

static int remove_path(void **state) {
    (void)state;
    unsetenv("WEIR_CPU_LEVEL");
    return unlink(model_path) | unlink(cache_path);
}

static weir_model *open_model(const char *family, const char *level) {
    tiny_model_write(model_path, family);
    return tiny_model_open(model_path, level);
}

static engine *open_engine(weir_model *m, int64_t kv_bytes) {
    engine *e = NULL;
    weir_error err = {0};
    const weir_engine_options options = {.n_threads = 2, .n_ctx = N_CTX, .n_parallel = 4, .n_batch = 256, .kv_cache_bytes = kv_bytes};
    if (engine_open(&e, m, &options, &err) != 0) fail_msg("%s: %s", err.place, err.message);
    return e;
}

/* Texts 0, 1, 2, ... begin alike for different lengths; the same number is the same text. */
static void make_text(int text, int32_t *tokens) {
    static const int32_t alike[] = {0, 100, 63, 64, 65, 31, 32, 33, 1, 150};
    for (int32_t i = 0; i < N_TEXT; i++) {
        const uint32_t key = i < alike[text % 10] ? 0 : (uint32_t)text;
        tokens[i] = (int32_t)(((key * 7919u + (uint32_t)i) * 2654435761u) >> 9) % GGUF_BUILDER_LLAMA_VOCAB;
    }
}

static void run(engine *e, engine_seq *seq, const int32_t *tokens, int32_t n, bool logits) {
    weir_error err = {0};
    const engine_item item = {.seq = seq, .tokens = tokens, .n_tok = n, .n_logits = logits};
    if (engine_step(e, &item, 1, NULL, NULL, &err) != 0) fail_msg("%s", err.message);
}

/* Logits after the first n tokens of the text and after each of the next, as a server would go: takes what is kept, computes the rest in
 * chunks, keeps. Returns how many tokens were taken. */
static int32_t serve(engine *e, int text, int32_t n, float *out, int32_t n_vocab) {
    int32_t tokens[N_TEXT];
    engine_seq *seq = NULL;
    make_text(text, tokens);
    assert_int_equal(engine_seq_begin(e, 0, &seq, NULL), 0);
    const int32_t n_taken = engine_seq_adopt(seq, tokens, n - 1);
    assert_true(n_taken >= 0 && n_taken < n);
    assert_int_equal(engine_seq_length(seq), n_taken);
    assert_int_equal(engine_seq_reserve(seq, n + N_GENERATED, NULL), 0);
    const int32_t whole = (n - 1) / KERN_PAGE * KERN_PAGE;
    for (int32_t at = n_taken; at < n;) {
        const int32_t end = at < whole ? whole : n;
        run(e, seq, tokens + at, end - at, end == n);
        at = end;
        engine_seq_keep(seq, tokens, at, false);
    }
    for (int32_t g = 0; g < N_GENERATED; g++) {
        memcpy(out + (size_t)g * (size_t)n_vocab, engine_logits(e, 0, 0), (size_t)n_vocab * sizeof(float));
        run(e, seq, tokens + n + g, 1, true);
    }
    engine_seq_keep(seq, tokens, n + N_GENERATED, true);
    engine_seq_close(e, &seq);
    return n_taken;
}

static void check_family(const char *family, const char *level) {
    static const int32_t lengths[] = {190, 2, 65, 97, 128, 190, 33, 64, 160, 190, 100, 50};
    weir_model *m = open_model(family, level);
    const int32_t n_vocab = weir_model_get_info(m)->n_vocab;
    const size_t size = (size_t)N_GENERATED * (size_t)n_vocab;
    float *cold = malloc(size * sizeof *cold), *warm = malloc(size * sizeof *warm);
    engine *e = open_engine(m, 16 << 20);
    int32_t n_taken = 0;
    for (int i = 0; i < 24; i++) {
        const int text = i * 5 % 12;
        engine *fresh = open_engine(m, 16 << 20);
        assert_int_equal(serve(fresh, text, lengths[i % 12], cold, n_vocab), 0);
        engine_close(&fresh);
        n_taken += serve(e, text, lengths[i % 12], warm, n_vocab);
        if (memcmp(cold, warm, size * sizeof *cold) != 0) fail_msg("%s, %s: text %d differs when part of it was kept", family, level, text);
    }
    /* The same again is all there but for what must be computed. */
    int32_t again = serve(e, 0, 190, warm, n_vocab);
    if (engine_state_bytes(e)) assert_true(again == 160 || again == 189);
    else assert_int_equal(again, 189);
    assert_true(n_taken > 500);
    assert_int_equal(engine_kv_tokens_used(e), 0);
    engine_close(&e);
    weir_model_close(&m);
    free(cold);
    free(warm);
}

static void test_a_hit_gives_the_bits_of_a_miss(void **state) {
    (void)state;
    for (size_t f = 0; f < sizeof families / sizeof families[0]; f++)
        for (size_t l = 0; l < sizeof levels / sizeof levels[0]; l++) {
            if (kern_level(levels[l]) == NULL) print_message("skipped: this CPU does not have %s\n", levels[l]);
            else check_family(families[f], levels[l]);
        }
}

/* A cache of a few pages gives up what is old; answers stay what they are. */
static void test_a_small_cache(void **state) {
    (void)state;
    weir_model *m = open_model("llama", "avx2");
    const int32_t n_vocab = weir_model_get_info(m)->n_vocab;
    const size_t size = (size_t)N_GENERATED * (size_t)n_vocab;
    float *cold = malloc(size * sizeof *cold), *warm = malloc(size * sizeof *warm);
    engine *e = open_engine(m, 16 << 20);
    const int64_t page_bytes = (16 << 20) / engine_kv_tokens_total(e) * KERN_PAGE;
    engine_close(&e);
    e = open_engine(m, 9 * page_bytes);
    for (int i = 0; i < 200; i++) {
        const int text = (int)below(12);
        const int32_t n = 2 + (int32_t)below(190);
        engine *fresh = open_engine(m, 16 << 20);
        serve(fresh, text, n, cold, n_vocab);
        engine_close(&fresh);
        serve(e, text, n, warm, n_vocab);
        assert_memory_equal(cold, warm, size * sizeof *cold);
    }
    engine_close(&e);
    weir_model_close(&m);
    free(cold);
    free(warm);
}

/* A sequence that goes back into a page which others hold writes to a copy. */
static void test_truncation_copies(void **state) {
    (void)state;
    weir_model *m = open_model("llama", "avx2");
    const int32_t n_vocab = weir_model_get_info(m)->n_vocab;
    const size_t size = (size_t)N_GENERATED * (size_t)n_vocab;
    float *first = malloc(size * sizeof *first), *again = malloc(size * sizeof *again);
    int32_t tokens[N_TEXT], other[N_TEXT];
    engine *e = open_engine(m, 16 << 20);
    engine_seq *seq = NULL;
    make_text(0, tokens);
    make_text(13, other);
    serve(e, 0, 190, first, n_vocab);
    assert_int_equal(engine_seq_begin(e, 0, &seq, NULL), 0);
    assert_int_equal(engine_seq_adopt(seq, tokens, 180), 180);
    assert_int_equal(engine_seq_reserve(seq, N_CTX, NULL), 0);
    engine_seq_truncate(seq, 70);
    run(e, seq, other + 70, 100, true);
    engine_seq_truncate(seq, 64);
    run(e, seq, other + 64, 100, true);
    engine_seq_keep(seq, other, 0, true);
    engine_seq_close(e, &seq);
    assert_int_equal(serve(e, 0, 190, again, n_vocab), 189);
    assert_memory_equal(first, again, size * sizeof *first);
    engine_close(&e);
    weir_model_close(&m);
    free(first);
    free(again);
}

/* ---- the file --------------------------------------------------------------------------------------------------------- */

static size_t read_file(const char *path, unsigned char **bytes) {
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    const size_t n = (size_t)ftell(f);
    rewind(f);
    *bytes = malloc(n);
    assert_int_equal(fread(*bytes, 1, n, f), n);
    fclose(f);
    return n;
}

static void write_file(const char *path, const unsigned char *bytes, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    fclose(f);
}

/* What one engine kept, the next one has, with the same bits; also where it has room for less. */
static void check_file(const char *family) {
    weir_model *m = open_model(family, "avx2");
    const int32_t n_vocab = weir_model_get_info(m)->n_vocab;
    const size_t size = (size_t)N_GENERATED * (size_t)n_vocab;
    float *first = malloc(size * sizeof *first), *again = malloc(size * sizeof *again);
    weir_error err = {0};
    engine *e = open_engine(m, 16 << 20);
    for (int text = 0; text < 12; text++) serve(e, text, 190, first, n_vocab);
    const int64_t n_kept = engine_kv_tokens_kept(e), page_bytes = (16 << 20) / engine_kv_tokens_total(e) * KERN_PAGE;
    if (engine_prefix_save(e, cache_path, &err) != 0) fail_msg("%s", err.message);
    engine_close(&e);
    for (int small = 0; small < 2; small++) {
        e = open_engine(m, small ? 12 * page_bytes : 16 << 20);
        if (engine_prefix_load(e, cache_path, &err) != 1) fail_msg("%s", err.message);
        assert_int_equal(engine_kv_tokens_used(e), 0);
        if (small) assert_in_range(engine_kv_tokens_kept(e), KERN_PAGE, 12 * KERN_PAGE);
        else assert_int_equal(engine_kv_tokens_kept(e), n_kept);
        const int32_t n_taken = serve(e, 11, 190, again, n_vocab);
        if (!small) assert_true(n_taken >= 160);
        if (!small) assert_memory_equal(first, again, size * sizeof *first);
        engine_close(&e);
    }
    weir_model_close(&m);
    free(first);
    free(again);
}

static void test_a_file_keeps_the_tree(void **state) {
    (void)state;
    check_file("llama");
    check_file("jamba");
}

static void test_a_bad_file_is_refused(void **state) {
    (void)state;
    unsigned char *bytes = NULL;
    weir_error err = {0};
    weir_model *m = open_model("llama", "avx2");
    float *logits = malloc(sizeof *logits * N_GENERATED * (size_t)weir_model_get_info(m)->n_vocab);
    engine *e = open_engine(m, 16 << 20);
    for (int text = 0; text < 3; text++) serve(e, text, 100, logits, weir_model_get_info(m)->n_vocab);
    assert_int_equal(engine_prefix_save(e, cache_path, &err), 0);
    assert_int_equal(engine_prefix_save(e, "/nonexistent/folder/file", &err), WEIR_E_IO);
    engine_close(&e);
    const size_t n = read_file(cache_path, &bytes);
    e = open_engine(m, 16 << 20);
    for (size_t at = 0; at < n; at += at < 2000 ? 1 : 997) { /* a changed bit anywhere */
        bytes[at] ^= 0x40;
        write_file(cache_path, bytes, n);
        const int rc = engine_prefix_load(e, cache_path, &err);
        assert_true(rc == WEIR_E_FORMAT || rc == WEIR_E_UNSUPPORTED);
        assert_int_equal(engine_kv_tokens_kept(e), 0);
        bytes[at] ^= 0x40;
    }
    for (size_t cut = 0; cut < n; cut += 1 + n / 200) {
        write_file(cache_path, bytes, cut);
        assert_int_equal(engine_prefix_load(e, cache_path, &err), WEIR_E_FORMAT);
        assert_int_equal(engine_kv_tokens_kept(e), 0);
    }
    assert_int_equal(engine_prefix_load(e, "/nonexistent", &err), 0);
    write_file(cache_path, bytes, n);
    assert_int_equal(engine_prefix_load(e, cache_path, &err), 1);
    engine_close(&e);
    weir_model_close(&m);
    m = open_model("deepseek2", "avx2");
    e = open_engine(m, 16 << 20);
    assert_int_equal(engine_prefix_load(e, cache_path, &err), WEIR_E_UNSUPPORTED);
    engine_close(&e);
    weir_model_close(&m);
    free(bytes);
    free(logits);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bookkeeping),
        cmocka_unit_test(test_least_recently_used_goes_first),
        cmocka_unit_test(test_a_hit_gives_the_bits_of_a_miss),
        cmocka_unit_test(test_a_small_cache),
        cmocka_unit_test(test_truncation_copies),
        cmocka_unit_test(test_a_file_keeps_the_tree),
        cmocka_unit_test(test_a_bad_file_is_refused),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
