/* Memory of a rendering, text under construction, and the containers: lists and dicts. See jinja_value.h. */
#include "chat/jinja_value.h"

#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/utf8.h"
#include "chat/jinja_ast.h"

enum { RENDER_MAX_DEPTH = 2500, DICT_SMALL = 8, MAX_TEXT_BYTES = INT32_MAX };

/* ---- bounds and memory ---- */

int render_fail(render *r, int code, const char *format, ...) {
    char place[48];
    snprintf(place, sizeof place, "template line %u", r->line);
    va_list args;
    va_start(args, format);
    error_setv(r->err, code, place, format, args);
    va_end(args);
    return code;
}

int render_charge(render *r, size_t n) {
    r->steps += n;
    if (r->steps <= r->max_steps) return 0;
    return render_fail(r, WEIR_E_LIMIT, "the template takes more than %llu steps", (unsigned long long)r->max_steps);
}

int render_alloc(render *r, size_t count, size_t size, void **out) {
    size_t n_bytes, total;
    if (!checked_mul(count, size, &n_bytes)) return render_fail(r, WEIR_E_LIMIT, "the template needs too much memory");
    TRY(render_charge(r, n_bytes / 256));
    *out = arena_alloc(&r->memory, n_bytes);
    if (*out) return 0;
    if (checked_add(r->memory.total_bytes, n_bytes, &total) && total + (1 << 20) < r->memory.limit_bytes)
        return render_fail(r, WEIR_E_NOMEM, "out of memory while rendering (%zu bytes)", n_bytes);
    return render_fail(r, WEIR_E_LIMIT, "the template needs more than %zu bytes of memory", r->memory.limit_bytes);
}

int render_enter(render *r) {
    if (r->depth >= RENDER_MAX_DEPTH)
        return render_fail(r, WEIR_E_LIMIT, "maximum recursion depth exceeded (%d nested evaluations)", RENDER_MAX_DEPTH);
    r->depth++;
    return render_charge(r, 1);
}

/* ---- text under construction ---- */

static bool sink_reserve(text_sink *s, size_t extra) {
    if (s->failed) return false;
    if (s->capacity - s->n >= extra) return true;
    size_t capacity = s->capacity < 64 ? 64 : s->capacity * 2;
    if (capacity < s->n + extra) capacity = s->n + extra;
    if (extra > MAX_TEXT_BYTES || capacity > MAX_TEXT_BYTES) {
        s->failed = render_fail(s->r, WEIR_E_LIMIT, "a text of more than %d bytes", MAX_TEXT_BYTES);
        return false;
    }
    char *data;
    s->failed = render_alloc(s->r, capacity, 1, (void **)&data);
    if (s->failed) return false;
    if (s->n) memcpy(data, s->data, s->n);
    s->data = data;
    s->capacity = capacity;
    return true;
}

void sink_append(text_sink *s, const char *text, size_t n_bytes) {
    if (n_bytes == 0 || !sink_reserve(s, n_bytes)) return;
    memcpy(s->data + s->n, text, n_bytes);
    s->n += n_bytes;
}

void sink_puts(text_sink *s, const char *text) {
    sink_append(s, text, strlen(text));
}

void sink_putc(text_sink *s, char c) {
    sink_append(s, &c, 1);
}

void sink_code_point(text_sink *s, uint32_t code_point) {
    char encoded[4];
    sink_append(s, encoded, utf8_encode(code_point, encoded));
}

void sink_repeat(text_sink *s, const char *text, size_t n_bytes, size_t times) {
    size_t total;
    if (s->failed || times == 0 || n_bytes == 0) return;
    if (!checked_mul(n_bytes, times, &total)) total = SIZE_MAX;
    if (!sink_reserve(s, total)) return;
    s->failed = render_charge(s->r, total / 64);
    for (size_t i = 0; !s->failed && i < times; i++, s->n += n_bytes) memcpy(s->data + s->n, text, n_bytes);
}

void sink_printf(text_sink *s, const char *format, ...) {
    char text[512];
    va_list args;
    if (!s->failed) s->failed = render_charge(s->r, 4);
    if (s->failed) return;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n > 0) sink_append(s, text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
}

int sink_finish(text_sink *s, value *out) {
    if (s->failed) return s->failed;
    *out = value_text(s->data ? s->data : "", s->n);
    return render_charge(s->r, s->n / 64);
}

/* ---- texts ---- */

value value_literal(const char *text) {
    return value_text(text, strlen(text));
}

int value_copy_text(render *r, const char *text, size_t n, value *out) {
    text_sink s = SINK(r);
    sink_append(&s, text, n);
    return sink_finish(&s, out);
}

bool text_equals(const value *v, const char *text) {
    return v->type == V_STRING && v->n_bytes == strlen(text) && memcmp(v->text, text, v->n_bytes) == 0;
}

/* A text that was itself made by a concatenation and ends where its buffer ends is continued in place, so that collecting a
 * long text piece by piece costs what its pieces cost. Earlier values keep seeing their own prefix. */
int value_concat(render *r, const value *a, const value *b, value *out) {
    size_t total = (size_t)a->n_bytes + b->n_bytes;
    uint8_t flags = a->flags & b->flags;
    if (total > MAX_TEXT_BYTES) return render_fail(r, WEIR_E_LIMIT, "a text of more than %d bytes", MAX_TEXT_BYTES);
    growing_text *g = NULL;
    for (unsigned i = 0; i < 4 && a->n_bytes; i++)
        if (r->growing[i].data && a->text >= r->growing[i].data && a->text + a->n_bytes == r->growing[i].data + r->growing[i].n)
            g = &r->growing[i];
    if (g == NULL || g->capacity - g->n < b->n_bytes) {
        size_t capacity = g ? total * 2 : total;
        char *data;
        TRY(render_alloc(r, capacity ? capacity : 1, 1, (void **)&data));
        if (a->n_bytes) memcpy(data, a->text, a->n_bytes);
        TRY(render_charge(r, a->n_bytes / 64));
        if (g == NULL) g = &r->growing[r->next_growing++ % 4];
        *g = (growing_text){data, a->n_bytes, capacity};
        *out = value_text(data, total);
    } else {
        *out = value_text(a->text, total);
    }
    if (b->n_bytes) memcpy(g->data + g->n, b->text, b->n_bytes);
    g->n += b->n_bytes;
    out->flags = flags;
    return render_charge(r, b->n_bytes / 64);
}

int value_undefined_hint(render *r, value *out, const char *format, ...) {
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    value_undefined *u;
    ALLOC(r, u, 1);
    u->hint = arena_strndup(&r->memory, text, strlen(text));
    *out = (value){.type = V_UNDEFINED, .undefined = u};
    return 0;
}

int value_undefined_name(render *r, const value *object, const value *name, value *out) {
    value_undefined *u;
    ALLOC(r, u, 1);
    if (object) u->object = *object;
    u->name = *name;
    *out = (value){.type = V_UNDEFINED, .undefined = u};
    return 0;
}

/* ---- lists ---- */

int list_new(render *r, value_type type, size_t capacity, value *out) {
    value_list *l;
    ALLOC(r, l, 1);
    if (capacity) ALLOC(r, l->items, capacity);
    l->capacity = capacity;
    *out = (value){.type = (uint8_t)type, .list = l};
    return render_charge(r, capacity);
}

int list_push(render *r, value_list *l, value item) {
    if (l->n == l->capacity) {
        size_t capacity = l->capacity < 4 ? 4 : l->capacity * 2;
        value *items;
        ALLOC(r, items, capacity);
        if (l->n) memcpy(items, l->items, l->n * sizeof *items);
        l->items = items;
        l->capacity = capacity;
    }
    l->items[l->n++] = item;
    return render_charge(r, 1);
}

value list_as_iterator(value list, const char *label) {
    list.type = V_ITERATOR;
    list.flags = 0;
    list.list->label = label;
    return list;
}

/* ---- dicts: entries in order of insertion, found by a hash table once there are more than a few ---- */

uint64_t text_hash(const char *text, size_t n_bytes) {
    /* FNV-1a with a final mix. Where the process was loaded is the seed: keys that collide cannot be made in advance. */
    uint64_t h = 0xcbf29ce484222325u ^ ((uint64_t)(uintptr_t)&text_hash >> 4) * 0x9e3779b97f4a7c15u;
    for (size_t i = 0; i < n_bytes; i++) h = (h ^ (unsigned char)text[i]) * 0x100000001b3u;
    return h ^ h >> 29;
}

static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 31) * 0x9e3779b97f4a7c15u;
    return x ^ x >> 29;
}

/* Values that are equal have equal hashes: 1, 1.0 and true are one key. */
int value_hash(render *r, const value *v, uint64_t *out) {
    int64_t i;
    switch (v->type) {
    case V_STRING:
        *out = text_hash(v->text, v->n_bytes);
        return 0;
    case V_FLOAT:
        i = v->real >= -9e18 && v->real <= 9e18 ? (int64_t)v->real : 0;
        if ((double)i == v->real)
            *out = mix((uint64_t)i);
        else
            memcpy(out, &v->real, sizeof *out);
        return 0;
    case V_LIST:
    case V_DICT:
    case V_VIEW:
        RAISE(r, "unhashable type: '%s'", value_type_name(v));
    case V_TUPLE: {
        uint64_t h = 7, item;
        TRY(render_enter(r));
        for (size_t k = 0; k < v->list->n; k++) {
            TRY(value_hash(r, &v->list->items[k], &item));
            h = mix(h ^ item) + k;
        }
        r->depth--;
        *out = h;
        return 0;
    }
    default:
        if (value_as_int(v, &i))
            *out = mix((uint64_t)i);
        else
            *out = mix(v->type == V_NONE || v->type == V_UNDEFINED ? v->type : (uintptr_t)v->list);
        return 0;
    }
}

int dict_new(render *r, value *out) {
    value_dict *d;
    ALLOC(r, d, 1);
    *out = (value){.type = V_DICT, .dict = d};
    return 0;
}

static void slot_insert(value_dict *d, uint32_t entry) {
    size_t at = d->entries[entry].hash & (d->n_slots - 1);
    while (d->slots[at]) at = (at + 1) & (d->n_slots - 1);
    d->slots[at] = entry + 1;
}

static int find_entry(render *r, const value_dict *d, const value *key, uint64_t hash, dict_entry **out) {
    *out = NULL;
    if (d->slots == NULL) {
        for (size_t i = 0; i < d->n; i++) {
            bool equal = false;
            if (d->entries[i].hash == hash) TRY(value_equal(r, &d->entries[i].key, key, &equal));
            if (!equal) continue;
            *out = &d->entries[i];
            return 0;
        }
        return 0;
    }
    for (size_t at = hash & (d->n_slots - 1); d->slots[at]; at = (at + 1) & (d->n_slots - 1)) {
        dict_entry *e = &d->entries[d->slots[at] - 1];
        bool equal = false;
        TRY(render_charge(r, 1));
        if (e->hash == hash) TRY(value_equal(r, &e->key, key, &equal));
        if (!equal) continue;
        *out = e;
        return 0;
    }
    return 0;
}

int dict_find(render *r, const value_dict *d, const value *key, value **found) {
    uint64_t hash;
    dict_entry *e;
    *found = NULL;
    TRY(value_hash(r, key, &hash));
    TRY(find_entry(r, d, key, hash, &e));
    if (e) *found = &e->item;
    return 0;
}

value *dict_find_text(const value_dict *d, const char *text, size_t n_bytes) {
    uint64_t hash = text_hash(text, n_bytes);
    if (d->slots == NULL) {
        for (size_t i = 0; i < d->n; i++) {
            const value *key = &d->entries[i].key;
            if (d->entries[i].hash == hash && key->type == V_STRING && key->n_bytes == n_bytes &&
                memcmp(key->text, text, n_bytes) == 0)
                return &d->entries[i].item;
        }
        return NULL;
    }
    for (size_t at = hash & (d->n_slots - 1); d->slots[at]; at = (at + 1) & (d->n_slots - 1)) {
        dict_entry *e = &d->entries[d->slots[at] - 1];
        if (e->hash == hash && e->key.type == V_STRING && e->key.n_bytes == n_bytes && memcmp(e->key.text, text, n_bytes) == 0)
            return &e->item;
    }
    return NULL;
}

static int dict_grow(render *r, value_dict *d) {
    size_t capacity = d->capacity ? d->capacity * 2 : 4;
    dict_entry *entries;
    ALLOC(r, entries, capacity);
    if (d->n) memcpy(entries, d->entries, d->n * sizeof *entries);
    d->entries = entries;
    d->capacity = capacity;
    if (capacity <= DICT_SMALL) return 0;
    d->n_slots = capacity * 2;
    ALLOC(r, d->slots, d->n_slots);
    for (size_t i = 0; i < d->n; i++) slot_insert(d, (uint32_t)i);
    return 0;
}

int dict_set(render *r, value_dict *d, const value *key, const value *item) {
    uint64_t hash;
    dict_entry *e;
    TRY(render_charge(r, 1));
    TRY(value_hash(r, key, &hash));
    TRY(find_entry(r, d, key, hash, &e));
    if (e) {
        e->item = *item;
        return 0;
    }
    if (d->n == d->capacity) TRY(dict_grow(r, d));
    d->entries[d->n] = (dict_entry){*key, *item, hash};
    d->n++;
    if (d->slots) slot_insert(d, (uint32_t)(d->n - 1));
    return 0;
}

int dict_remove(render *r, value_dict *d, const value *key) {
    uint64_t hash;
    dict_entry *e;
    TRY(value_hash(r, key, &hash));
    TRY(find_entry(r, d, key, hash, &e));
    if (e == NULL) return 0;
    memmove(e, e + 1, (size_t)(d->entries + d->n - e - 1) * sizeof *e);
    d->n--;
    if (d->slots) memset(d->slots, 0, d->n_slots * sizeof *d->slots);
    for (size_t i = 0; d->slots && i < d->n; i++) slot_insert(d, (uint32_t)i);
    return render_charge(r, d->n);
}
