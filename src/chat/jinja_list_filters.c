/* Filters over sequences: map, select, sort, groupby and their kin. What is a generator in Jinja is an iterator here, made at
 * once. */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "chat/jinja_builtin.h"
#include "chat/jinja_text.h"

#define FILTER(name) static int name(render *r, const value *self, const value *argv, const call_arguments *all, value *out)
#define UNUSED_ALL (void)r, (void)self, (void)argv, (void)all, (void)out

/* ---- attributes and keys ---- */

static bool all_digits(const char *text, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (text[i] < '0' || text[i] > '9') return false;
    return n > 0 && n < 18;
}

static int follow(render *r, const value *object, const value *path, const value *missing, value *out) {
    *out = *object;
    if (!argument_given(path)) return 0;
    if (!is_string(path)) {
        TRY(value_get_item(r, object, path, out));
        if (missing && is_undefined(out)) *out = *missing;
        return 0;
    }
    for (size_t at = 0; at <= path->n_bytes;) {
        size_t dot = text_find(path->text, path->n_bytes, at, ".", 1), end = dot == SIZE_MAX ? path->n_bytes : dot;
        value key = value_text(path->text + at, end - at), item = *out;
        if (all_digits(key.text, key.n_bytes)) {
            char digits[20];
            memcpy(digits, key.text, key.n_bytes);
            digits[key.n_bytes] = '\0';
            key = value_int(strtoll(digits, NULL, 10));
        }
        TRY(value_get_item(r, &item, &key, out));
        if (missing && is_undefined(out)) *out = *missing;
        at = end + 1;
    }
    return 0;
}

int attribute_path(render *r, const value *object, const value *path, value *out) {
    return follow(r, object, path, NULL, out);
}

int fold_case(render *r, const value *v, bool case_sensitive, value *out) {
    *out = *v;
    if (case_sensitive || !is_string(v)) return 0;
    text_sink s = SINK(r);
    text_map_case(&s, v->text, v->n_bytes, CASE_LOWER);
    return sink_finish(&s, out);
}

typedef struct sort_item {
    value key, item;
} sort_item;

/* Stable merge sort by Python's order; `reverse` keeps equal items in their order too. */
static int sort_items(render *r, sort_item *items, size_t n, bool reverse) {
    sort_item *from = items, *to, *spare;
    ALLOC(r, spare, n + 1);
    to = spare;
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t low = 0; low < n; low += 2 * width) {
            size_t mid = low + width < n ? low + width : n, high = low + 2 * width < n ? low + 2 * width : n, i = low, k = mid;
            for (size_t at = low; at < high; at++) {
                bool right = i >= mid;
                if (i < mid && k < high) {
                    int order;
                    const value *a = &from[i].key, *b = &from[k].key;
                    TRY(reverse ? value_order(r, a, b, "<", &order) : value_order(r, b, a, "<", &order));
                    right = order < 0;
                }
                to[at] = right ? from[k++] : from[i++];
            }
        }
        sort_item *swap = from;
        from = to;
        to = swap;
    }
    if (from != items) memcpy(items, from, n * sizeof *items);
    return 0;
}

/* The items of `v` with the key that `path` leads to. */
static int keyed_items(render *r, const value *v, const value *path, const value *missing, bool case_sensitive, sort_item **out,
                       size_t *n) {
    value items, key;
    TRY(value_to_list(r, v, &items));
    ALLOC(r, *out, items.list->n + 1);
    for (size_t i = 0; i < items.list->n; i++) {
        TRY(follow(r, &items.list->items[i], path, missing, &key));
        TRY(fold_case(r, &key, case_sensitive, &(*out)[i].key));
        (*out)[i].item = items.list->items[i];
    }
    *n = items.list->n;
    return 0;
}

/* ---- sorting and grouping ---- */

/* The key of sort: a list with the value of each attribute ("a,b"). */
static int multi_key(render *r, const value *item, const value *attributes, bool case_sensitive, value *out) {
    value part, folded;
    TRY(list_new(r, V_LIST, 1, out));
    if (!is_string(attributes)) {
        TRY(follow(r, item, attributes, NULL, &part));
        TRY(fold_case(r, &part, case_sensitive, &folded));
        return list_push(r, out->list, folded);
    }
    for (size_t at = 0; at <= attributes->n_bytes;) {
        size_t comma = text_find(attributes->text, attributes->n_bytes, at, ",", 1),
               end = comma == SIZE_MAX ? attributes->n_bytes : comma;
        value path = value_text(attributes->text + at, end - at);
        TRY(follow(r, item, &path, NULL, &part));
        TRY(fold_case(r, &part, case_sensitive, &folded));
        TRY(list_push(r, out->list, folded));
        at = end + 1;
    }
    return 0;
}

FILTER(filter_sort) {
    value items;
    sort_item *sorted;
    UNUSED_ALL;
    TRY(value_to_list(r, self, &items));
    size_t n = items.list->n;
    ALLOC(r, sorted, n + 1);
    for (size_t i = 0; i < n; i++) {
        sorted[i].item = items.list->items[i];
        TRY(multi_key(r, &sorted[i].item, &argv[2], argument_truth(&argv[1], false), &sorted[i].key));
    }
    TRY(sort_items(r, sorted, n, argument_truth(&argv[0], false)));
    for (size_t i = 0; i < n; i++) items.list->items[i] = sorted[i].item;
    *out = items;
    return 0;
}

FILTER(filter_dictsort) {
    UNUSED_ALL;
    sort_item *sorted;
    bool by_value = text_equals(&argv[1], "value"), case_sensitive = argument_truth(&argv[0], false);
    if (is_undefined(self)) return value_raise_undefined(r, self);
    if (self->type != V_DICT) RAISE(r, "'%s' object has no attribute 'items'", value_type_name(self));
    if (argv[1].type != V_MISSING && !by_value && !text_equals(&argv[1], "key"))
        RAISE(r, "You can only sort by either \"key\" or \"value\"");
    ALLOC(r, sorted, self->dict->n + 1);
    for (size_t i = 0; i < self->dict->n; i++) {
        const dict_entry *e = &self->dict->entries[i];
        value *pair = &sorted[i].item;
        TRY(list_new(r, V_TUPLE, 2, pair));
        pair->list->items[0] = e->key;
        pair->list->items[1] = e->item;
        pair->list->n = 2;
        TRY(fold_case(r, by_value ? &e->item : &e->key, case_sensitive, &sorted[i].key));
    }
    TRY(sort_items(r, sorted, self->dict->n, argument_truth(&argv[2], false)));
    TRY(list_new(r, V_LIST, self->dict->n, out));
    for (size_t i = 0; i < self->dict->n; i++) TRY(list_push(r, out->list, sorted[i].item));
    return 0;
}

FILTER(filter_unique) {
    UNUSED_ALL;
    sort_item *items;
    size_t n;
    value seen, unique;
    TRY(keyed_items(r, self, &argv[1], NULL, argument_truth(&argv[0], false), &items, &n));
    TRY(dict_new(r, &seen));
    TRY(list_new(r, V_LIST, n, &unique));
    for (size_t i = 0; i < n; i++) {
        value *found, nothing = value_none();
        TRY(dict_find(r, seen.dict, &items[i].key, &found));
        if (found) continue;
        TRY(dict_set(r, seen.dict, &items[i].key, &nothing));
        TRY(list_push(r, unique.list, items[i].item));
    }
    *out = list_as_iterator(unique, "generator object sync_do_unique at 0x0");
    return 0;
}

static int extreme(render *r, const value *self, const value *argv, bool largest, value *out) {
    sort_item *items;
    size_t n, best = 0;
    TRY(keyed_items(r, self, &argv[1], NULL, argument_truth(&argv[0], false), &items, &n));
    if (n == 0) return value_undefined_hint(r, out, "No aggregated item, sequence was empty.");
    for (size_t i = 1; i < n; i++) {
        int order;
        TRY(value_order(r, &items[i].key, &items[best].key, largest ? ">" : "<", &order));
        if (largest ? order == 1 : order == -1) best = i;
    }
    *out = items[best].item;
    return 0;
}

FILTER(filter_min) {
    UNUSED_ALL;
    return extreme(r, self, argv, false, out);
}
FILTER(filter_max) {
    UNUSED_ALL;
    return extreme(r, self, argv, true, out);
}

FILTER(filter_groupby) {
    UNUSED_ALL;
    sort_item *items;
    size_t n;
    bool case_sensitive = argument_truth(&argv[2], false);
    const value *missing = argument_given(&argv[1]) ? &argv[1] : NULL;
    TRY(keyed_items(r, self, &argv[0], missing, case_sensitive, &items, &n));
    TRY(sort_items(r, items, n, false));
    TRY(list_new(r, V_LIST, 0, out));
    for (size_t i = 0, end; i < n; i = end) {
        value group, members, key = items[i].key;
        TRY(list_new(r, V_LIST, 0, &members));
        bool equal = true;
        for (end = i; end < n && equal; end += equal) {
            TRY(value_equal(r, &items[end].key, &items[i].key, &equal));
            if (equal) TRY(list_push(r, members.list, items[end].item));
        }
        if (!case_sensitive) TRY(follow(r, &items[i].item, &argv[0], missing, &key));
        TRY(list_new(r, V_TUPLE, 2, &group));
        group.flags = VALUE_GROUP;
        TRY(list_push(r, group.list, key));
        TRY(list_push(r, group.list, members));
        TRY(list_push(r, out->list, group));
    }
    return 0;
}

/* ---- choosing and mapping ---- */

/* The filter or test that `name` means, for the filters that take one by name. */
static int named_builtin(render *r, const value *name, bool test, const jinja_builtin **out) {
    *out = !is_string(name) ? NULL : test ? test_find(name->text, name->n_bytes) : filter_find(name->text, name->n_bytes);
    if (*out) return 0;
    value text;
    TRY(value_to_text(r, name, &text));
    RAISE(r, "No %s named '%.*s'.", test ? "test" : "filter", (int)(text.n_bytes < 200 ? text.n_bytes : 200), text.text);
}

static const value *keyword(const call_arguments *all, const char *name) {
    for (size_t i = 0; i < all->n_keywords; i++)
        if (text_equals(&all->keywords[i].name, name)) return &all->keywords[i].item;
    return NULL;
}

FILTER(filter_map) {
    (void)argv;
    value items = {0}, mapped, item;
    const value *attribute = all->n ? NULL : keyword(all, "attribute"), *missing = keyword(all, "default");
    const jinja_builtin *filter = NULL;
    call_arguments rest = *all;
    TRY(list_new(r, V_LIST, 0, &mapped));
    *out = list_as_iterator(mapped, "generator object sync_do_map at 0x0");
    if (!value_truth(self)) return 0;
    if (attribute == NULL) {
        if (all->n == 0) RAISE(r, "map requires a filter argument");
        TRY(named_builtin(r, &all->items[0], false, &filter));
        rest.items++;
        rest.n--;
    } else {
        for (size_t i = 0; i < all->n_keywords; i++) {
            const value *k = &all->keywords[i].name;
            if (!text_equals(k, "attribute") && !text_equals(k, "default"))
                RAISE(r, "Unexpected keyword argument '%.*s'", (int)k->n_bytes, k->text);
        }
        if (missing && missing->type == V_NONE) missing = NULL;
    }
    TRY(value_to_list(r, self, &items));
    for (size_t i = 0; i < items.list->n; i++) {
        TRY(filter ? builtin_call(r, filter, &items.list->items[i], &rest, &item)
                   : follow(r, &items.list->items[i], attribute, missing, &item));
        TRY(list_push(r, out->list, item));
    }
    return 0;
}

/* select, reject (by the item) and selectattr, rejectattr (by an attribute of it). */
static int choose(render *r, const value *self, const call_arguments *all, bool wanted, bool by_attribute, value *out) {
    value items, chosen, subject;
    const jinja_builtin *test = NULL;
    call_arguments rest = *all;
    size_t skip = by_attribute;
    TRY(list_new(r, V_LIST, 0, &chosen));
    *out = list_as_iterator(chosen, "generator object select_or_reject at 0x0");
    if (!value_truth(self)) return 0;
    if (by_attribute && all->n == 0) RAISE(r, "Missing parameter for attribute name");
    if (all->n > skip) {
        TRY(named_builtin(r, &all->items[skip], true, &test));
        skip++;
    }
    if (skip) rest.items += skip;
    rest.n -= skip;
    TRY(value_to_list(r, self, &items));
    for (size_t i = 0; i < items.list->n; i++) {
        bool passes;
        subject = items.list->items[i];
        if (by_attribute) TRY(follow(r, &items.list->items[i], &all->items[0], NULL, &subject));
        if (test)
            TRY(test_call(r, test, &subject, &rest, &passes));
        else
            passes = value_truth(&subject);
        if (passes == wanted) TRY(list_push(r, out->list, items.list->items[i]));
    }
    return 0;
}

FILTER(filter_select) {
    UNUSED_ALL;
    return choose(r, self, all, true, false, out);
}
FILTER(filter_reject) {
    UNUSED_ALL;
    return choose(r, self, all, false, false, out);
}
FILTER(filter_selectattr) {
    UNUSED_ALL;
    return choose(r, self, all, true, true, out);
}
FILTER(filter_rejectattr) {
    UNUSED_ALL;
    return choose(r, self, all, false, true, out);
}

/* ---- parts ---- */

FILTER(filter_first) {
    UNUSED_ALL;
    if (self->type == V_ITERATOR) {
        value_list *l = self->list;
        if (l->position < l->n) {
            *out = l->items[l->position++];
            return 0;
        }
    } else if (is_listlike(self) && self->list->n) {
        *out = self->list->items[0];
        return 0;
    } else if (is_string(self) && self->n_bytes) {
        value zero = value_int(0);
        return value_get_item(r, self, &zero, out);
    } else {
        value items;
        TRY(value_to_list(r, self, &items));
        if (items.list->n) {
            *out = items.list->items[0];
            return 0;
        }
    }
    return value_undefined_hint(r, out, "No first item, sequence was empty.");
}

FILTER(filter_last) {
    UNUSED_ALL;
    value items, last = value_int(-1);
    if (!value_iterable(self)) RAISE(r, "'%s' object is not reversible", value_type_name(self));
    if (is_string(self) && self->n_bytes) return value_get_item(r, self, &last, out);
    TRY(value_to_list(r, self, &items));
    if (items.list->n == 0) return value_undefined_hint(r, out, "No last item, sequence was empty.");
    *out = items.list->items[items.list->n - 1];
    return 0;
}

FILTER(filter_random) {
    UNUSED_ALL;
    value items;
    TRY(value_to_list(r, self, &items));
    if (items.list->n == 0) return value_undefined_hint(r, out, "No random item, sequence was empty.");
    *out = items.list->items[(r->steps * 0x9e3779b97f4a7c15u >> 33) % items.list->n]; /* repeatable: no clock, no generator */
    return 0;
}

FILTER(filter_reverse) {
    UNUSED_ALL;
    if (is_string(self)) {
        value step = value_int(-1);
        return value_slice(r, self, NULL, NULL, &step, out);
    }
    if (!value_iterable(self)) RAISE(r, "argument must be iterable");
    value items;
    TRY(value_to_list(r, self, &items));
    for (size_t i = 0, k = items.list->n; i + 1 < k; i++) {
        value swap = items.list->items[i];
        items.list->items[i] = items.list->items[--k];
        items.list->items[k] = swap;
    }
    *out = self->type == V_ITERATOR ? items : list_as_iterator(items, "list_reverseiterator object at 0x0");
    return 0;
}

FILTER(filter_items) {
    UNUSED_ALL;
    value pairs, *view = &pairs;
    if (is_undefined(self)) {
        TRY(list_new(r, V_LIST, 0, view));
    } else {
        if (self->type != V_DICT) RAISE(r, "Can only get item pairs from a mapping.");
        call_arguments none = {0};
        TRY(builtin_call(r, method_find(self, "items", 5), self, &none, view));
    }
    *out = list_as_iterator(pairs, "generator object do_items at 0x0");
    return 0;
}

FILTER(filter_list) {
    UNUSED_ALL;
    return value_to_list(r, self, out);
}

FILTER(filter_batch) {
    UNUSED_ALL;
    value items, batches, batch;
    int64_t size;
    TRY(argument_int(r, &argv[0], "linecount", 0, &size));
    TRY(value_to_list(r, self, &items));
    TRY(list_new(r, V_LIST, 0, &batches));
    TRY(list_new(r, V_LIST, 0, &batch));
    for (size_t i = 0; i < items.list->n; i++) {
        if ((int64_t)batch.list->n == size) {
            TRY(list_push(r, batches.list, batch));
            TRY(list_new(r, V_LIST, 0, &batch));
        }
        TRY(list_push(r, batch.list, items.list->items[i]));
    }
    if (batch.list->n) {
        while (argument_given(&argv[1]) && (int64_t)batch.list->n < size) TRY(list_push(r, batch.list, argv[1]));
        TRY(list_push(r, batches.list, batch));
    }
    *out = list_as_iterator(batches, "generator object do_batch at 0x0");
    return 0;
}

FILTER(filter_slice) {
    UNUSED_ALL;
    value items, slices, part;
    int64_t count;
    TRY(argument_int(r, &argv[0], "slices", 0, &count));
    TRY(value_to_list(r, self, &items));
    if (count == 0) RAISE(r, "integer division or modulo by zero");
    TRY(list_new(r, V_LIST, 0, &slices));
    int64_t n = (int64_t)items.list->n, each = count > 0 ? n / count : 0, extra = count > 0 ? n % count : 0, at = 0;
    for (int64_t k = 0; k < count; k++) {
        int64_t end = at + each + (k < extra);
        TRY(list_new(r, V_LIST, 0, &part));
        for (; at < end; at++) TRY(list_push(r, part.list, items.list->items[at]));
        if (argument_given(&argv[1]) && k >= extra) TRY(list_push(r, part.list, argv[1]));
        TRY(list_push(r, slices.list, part));
    }
    *out = list_as_iterator(slices, "generator object sync_do_slice at 0x0");
    return 0;
}

/* ---- folding ---- */

FILTER(filter_sum) {
    UNUSED_ALL;
    value items, item, total = argv[1].type == V_MISSING ? value_int(0) : argv[1];
    if (is_string(&total)) RAISE(r, "sum() can't sum strings [use ''.join(seq) instead]");
    TRY(value_to_list(r, self, &items));
    for (size_t i = 0; i < items.list->n; i++) {
        value sum;
        TRY(follow(r, &items.list->items[i], &argv[0], NULL, &item));
        TRY(value_arithmetic(r, OP_ADD, &total, &item, &sum));
        total = sum;
    }
    *out = total;
    return 0;
}

FILTER(filter_join) {
    UNUSED_ALL;
    value items, separator = value_text("", 0), item;
    TRY(value_to_list(r, self, &items));
    if (argv[0].type != V_MISSING) TRY(value_to_text(r, &argv[0], &separator));
    bool safe = separator.flags & VALUE_SAFE;
    for (size_t i = 0; i < items.list->n; i++) {
        TRY(follow(r, &items.list->items[i], &argv[1], NULL, &item));
        items.list->items[i] = item;
        safe = safe || (is_string(&item) && (item.flags & VALUE_SAFE));
    }
    safe = safe && r->autoescape;
    if (safe) TRY(value_escape(r, &separator, &separator));
    text_sink s = SINK(r);
    for (size_t i = 0; i < items.list->n; i++) {
        if (i) sink_append(&s, separator.text, separator.n_bytes);
        if (safe) TRY(value_escape(r, &items.list->items[i], &items.list->items[i]));
        TRY(value_print(&s, &items.list->items[i]));
    }
    TRY(sink_finish(&s, out));
    if (safe) out->flags |= VALUE_SAFE;
    return 0;
}

static const jinja_builtin rows[] = {
    {"join", filter_join, "d attribute", 0},
    {"list", filter_list, "", 0},
    {"map", filter_map, "*", 0},
    {"select", filter_select, "*", 0},
    {"reject", filter_reject, "*", 0},
    {"selectattr", filter_selectattr, "*", 0},
    {"rejectattr", filter_rejectattr, "*", 0},
    {"first", filter_first, "", 0},
    {"last", filter_last, "", 0},
    {"items", filter_items, "", 0},
    {"sort", filter_sort, "reverse case_sensitive attribute", 0},
    {"dictsort", filter_dictsort, "case_sensitive by reverse", 0},
    {"unique", filter_unique, "case_sensitive attribute", 0},
    {"min", filter_min, "case_sensitive attribute", 0},
    {"max", filter_max, "case_sensitive attribute", 0},
    {"groupby", filter_groupby, "attribute default case_sensitive", 1},
    {"reverse", filter_reverse, "", 0},
    {"batch", filter_batch, "linecount fill_with", 1},
    {"slice", filter_slice, "slices fill_with", 1},
    {"sum", filter_sum, "attribute start", 0},
    {"random", filter_random, "", 0},
};

const builtin_table list_filters = {rows, sizeof rows / sizeof rows[0]};
