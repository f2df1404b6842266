/* Who holds which page of the KV slab: sequences, the prefix tree, nobody.
 *
 * The prefix tree keeps pages of sequences that ended or still run, under the tokens that they hold, so that a prompt which begins
 * alike need not compute them again. A page is counted by its holders; the tree is one of them. Pages that only the tree holds are
 * given up, the least recently used first, where a sequence needs one.
 *
 * Pure bookkeeping of numbers: knows nothing of what is in a page, of models or requests. One owner thread; the counts may be read
 * by any. */
#ifndef WEIR_ENGINE_PAGES_H
#define WEIR_ENGINE_PAGES_H

#include <stdbool.h>
#include <stdint.h>

#include "weir/weir_error.h"

typedef struct pages pages;

enum { PAGES_NONE = -1 };

/* n_pages pages of page_tokens tokens. `drop` is called with `user` to free what pages_attach gave (may be NULL if
 * that is never called). WEIR_E_NOMEM. */
int pages_open(pages **out, int32_t n_pages, int32_t page_tokens, void (*drop)(void *user, void *snapshot), void *user,
               weir_error *err);
void pages_close(pages **p);

/* A page for a sequence, with one reference; PAGES_NONE: all are held by sequences. */
int32_t pages_take(pages *p);
/* A holder more, or less. A sequence drops its pages in the order from its last to its first. */
void pages_hold(pages *p, int32_t page);
void pages_drop(pages *p, int32_t page);
/* Whether writing into the page would be seen by another holder. */
bool pages_shared(const pages *p, int32_t page);
int32_t pages_n_available(const pages *p); /* that pages_take could give, one after the other */
int32_t pages_n_used(const pages *p);      /* that sequences hold; any thread */
int32_t pages_n_kept(const pages *p);      /* that only the tree holds; any thread */

/* ---- the tree ---- */

/* `after` is the page before, which the tree must hold, as all pages before that; PAGES_NONE = the beginning of a text.
 * Texts of different `salt` share nothing. */

/* The kept page that holds tokens[page_tokens] behind `after`, or PAGES_NONE. No reference is added. */
int32_t pages_find(const pages *p, uint64_t salt, int32_t after, const int32_t *tokens);
/* The kept page behind `after` that begins like tokens[n_tok], and by how many tokens (at least 1); or PAGES_NONE. Of many pages
 * only the 64 kept last are looked at. */
int32_t pages_find_part(const pages *p, uint64_t salt, int32_t after, const int32_t *tokens, int32_t n_tok, int32_t *n_common);
/* Keeps `page`, which holds tokens[n_tok] behind `after`, and returns it; or, if these tokens are kept already, returns that page,
 * and `page` stays as it was. The caller holds `after` and `page`. n_tok < page_tokens: nothing can be kept behind it. */
int32_t pages_keep(pages *p, uint64_t salt, int32_t after, int32_t page, const int32_t *tokens, int32_t n_tok);
/* Whether the kept page is whole, so that others can stand behind it. */
bool pages_full(const pages *p, int32_t page);
/* What belongs to the text's state at the end of the kept page: attach gives ownership. NULL = nothing. */
void pages_attach(pages *p, int32_t page, void *snapshot);
void *pages_snapshot(const pages *p, int32_t page);
/* Gives up the least recently used page that only the tree holds. False = there is none. */
bool pages_forget_one(pages *p);

/* What is kept, for saving: calls visit for each page, every one after the one that it stands behind, until that returns false. */
typedef struct pages_entry {
    int32_t page, after, n_tok;
    uint64_t salt;
    const int32_t *tokens; /* [n_tok] */
} pages_entry;
typedef bool (*pages_visit_fn)(void *user, const pages_entry *entry);
bool pages_visit(const pages *p, pages_visit_fn visit, void *user);

#endif
