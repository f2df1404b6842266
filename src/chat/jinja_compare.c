/* Questions that Python asks of its values: truth, equality, order, membership, length, iteration. */
#include <math.h>
#include <string.h>

#include "base/utf8.h"
#include "chat/jinja_text.h"
#include "chat/jinja_value.h"
#include "chat/jinja_eval.h"

bool value_as_int(const value *v, int64_t *out) {
    if (v->type != V_INT && v->type != V_BOOL) return false;
    *out = v->type == V_INT ? v->integer : v->boolean;
    return true;
}

bool value_as_double(const value *v, double *out) {
    int64_t i;
    if (v->type == V_FLOAT) {
        *out = v->real;
        return true;
    }
    if (!value_as_int(v, &i)) return false;
    *out = (double)i;
    return true;
}

bool value_truth(const value *v) {
    switch (v->type) {
    case V_MISSING:
    case V_UNDEFINED:
    case V_NONE:
        return false;
    case V_BOOL:
        return v->boolean;
    case V_INT:
        return v->integer != 0;
    case V_FLOAT:
        return v->real != 0;
    case V_STRING:
        return v->n_bytes > 0;
    case V_LIST:
    case V_TUPLE:
    case V_VIEW:
        return v->list->n > 0;
    case V_RANGE:
        return v->range->n > 0;
    case V_DICT:
        return v->dict->n > 0;
    default:
        return true;
    }
}

static int compare_numbers(const value *a, const value *b, int *out) {
    int64_t i, k;
    double x, y;
    if (value_as_int(a, &i) && value_as_int(b, &k)) {
        *out = i < k ? -1 : i > k;
        return 1;
    }
    if (!value_as_double(a, &x) || !value_as_double(b, &y)) return 0;
    *out = isnan(x) || isnan(y) ? 2 : x < y ? -1 : x > y;
    /* A double next to a large integer: compare as integers where the conversion to double rounded. */
    if (*out == 0 && fabs(x) > 9007199254740992.0 && fabs(x) < 9.2e18 && (value_as_int(a, &i) || value_as_int(b, &i))) {
        int64_t other = (int64_t)(a->type == V_FLOAT ? x : y);
        *out = i < other ? -1 : i > other;
        if (a->type == V_FLOAT) *out = -*out;
    }
    return 1;
}

static int compare_text(const value *a, const value *b) {
    size_t n = a->n_bytes < b->n_bytes ? a->n_bytes : b->n_bytes;
    int order = n ? memcmp(a->text, b->text, n) : 0; /* UTF-8 keeps the order of code points */
    return order ? (order < 0 ? -1 : 1) : a->n_bytes < b->n_bytes ? -1 : a->n_bytes > b->n_bytes;
}

static int dicts_equal(render *r, const value_dict *a, const value_dict *b, bool *out) {
    *out = a->n == b->n;
    for (size_t i = 0; *out && i < a->n; i++) {
        value *other;
        TRY(dict_find(r, b, &a->entries[i].key, &other));
        *out = other != NULL;
        if (other) TRY(value_equal(r, &a->entries[i].item, other, out));
    }
    return 0;
}

static int compound_equal(render *r, const value *a, const value *b, bool *out) {
    if (a->type == V_DICT) return dicts_equal(r, a->dict, b->dict, out);
    if (a->type == V_VIEW && (a->flags != b->flags || a->flags == VALUE_VALUES)) {
        *out = a->list == b->list;
        return 0;
    }
    *out = a->list->n == b->list->n;
    for (size_t i = 0; *out && i < a->list->n; i++) TRY(value_equal(r, &a->list->items[i], &b->list->items[i], out));
    return 0;
}

int value_equal(render *r, const value *a, const value *b, bool *out) {
    int order;
    TRY(render_charge(r, 1));
    if (compare_numbers(a, b, &order)) {
        *out = order == 0;
        return 0;
    }
    *out = false;
    if (a->type != b->type) return 0;
    switch (a->type) {
    case V_UNDEFINED:
    case V_MISSING:
    case V_NONE:
        *out = true;
        return 0;
    case V_STRING:
        *out = a->n_bytes == b->n_bytes && memcmp(a->text, b->text, a->n_bytes) == 0;
        return render_charge(r, a->n_bytes / 64);
    case V_RANGE:
        *out = a->range->n == b->range->n && (a->range->n == 0 || (a->range->start == b->range->start &&
                                                                   (a->range->n == 1 || a->range->step == b->range->step)));
        return 0;
    case V_LIST:
    case V_TUPLE:
    case V_VIEW:
    case V_DICT:
        if (a->list == b->list) {
            *out = true;
            return 0;
        }
        TRY(render_enter(r));
        TRY(compound_equal(r, a, b, out));
        r->depth--;
        return 0;
    default:
        *out = a->list == b->list;
        return 0; /* identity */
    }
}

int value_order(render *r, const value *a, const value *b, const char *op, int *out) {
    TRY(render_charge(r, 1));
    if (compare_numbers(a, b, out)) return 0;
    if (a->type == V_STRING && b->type == V_STRING) {
        *out = compare_text(a, b);
        return render_charge(r, a->n_bytes / 64);
    }
    if (is_undefined(a)) return value_raise_undefined(r, a);
    if (is_undefined(b)) return value_raise_undefined(r, b);
    if (a->type != b->type || (a->type != V_LIST && a->type != V_TUPLE))
        RAISE(r, "'%s' not supported between instances of '%s' and '%s'", op, value_type_name(a), value_type_name(b));
    size_t n = a->list->n < b->list->n ? a->list->n : b->list->n;
    TRY(render_enter(r));
    for (size_t i = 0; i < n; i++) {
        bool equal;
        TRY(value_equal(r, &a->list->items[i], &b->list->items[i], &equal));
        if (equal) continue;
        TRY(value_order(r, &a->list->items[i], &b->list->items[i], op, out));
        r->depth--;
        return 0;
    }
    r->depth--;
    *out = a->list->n < b->list->n ? -1 : a->list->n > b->list->n;
    return 0;
}

static bool range_contains(const value_range *g, const value *item) {
    int64_t i;
    if (item->type == V_FLOAT && item->real >= -9e18 && item->real <= 9e18 && item->real == floor(item->real))
        i = (int64_t)item->real;
    else if (!value_as_int(item, &i))
        return false;
    if (g->n == 0) return false;
    __int128 delta = (__int128)i - g->start;
    return delta % g->step == 0 && delta / g->step >= 0 && delta / g->step < g->n;
}

int value_contains(render *r, const value *container, const value *item, bool *out) {
    value *found;
    *out = false;
    switch (container->type) {
    case V_UNDEFINED:
        return 0;
    case V_STRING:
        if (item->type != V_STRING) RAISE(r, "'in <string>' requires string as left operand, not %s", value_type_name(item));
        *out = text_find(container->text, container->n_bytes, 0, item->text, item->n_bytes) != SIZE_MAX;
        return render_charge(r, container->n_bytes / 64);
    case V_DICT:
        TRY(dict_find(r, container->dict, item, &found));
        *out = found != NULL;
        return 0;
    case V_RANGE:
        *out = range_contains(container->range, item);
        return 0;
    case V_LIST:
    case V_TUPLE:
    case V_VIEW:
        for (size_t i = 0; !*out && i < container->list->n; i++) TRY(value_equal(r, &container->list->items[i], item, out));
        return 0;
    case V_ITERATOR: {
        value_list *l = container->list;
        while (!*out && l->position < l->n) TRY(value_equal(r, &l->items[l->position++], item, out));
        return 0;
    }
    default:
        RAISE(r, "argument of type '%s' is not iterable", value_type_name(container));
    }
}

int value_length(render *r, const value *v, int64_t *out) {
    switch (v->type) {
    case V_UNDEFINED:
        *out = 0;
        return 0;
    case V_STRING:
        *out = (int64_t)utf8_count(v->text, v->n_bytes);
        return render_charge(r, v->n_bytes / 8);
    case V_LIST:
    case V_TUPLE:
    case V_VIEW:
        *out = (int64_t)v->list->n;
        return 0;
    case V_ITERATOR:
        *out = (int64_t)(v->list->n - v->list->position);
        return 0; /* lenient: Python refuses */
    case V_RANGE:
        *out = v->range->n;
        return 0;
    case V_DICT:
        *out = (int64_t)v->dict->n;
        return 0;
    case V_LOOP:
        return jinja_loop_length(r, v->loop, out);
    default:
        RAISE(r, "object of type '%s' has no len()", value_type_name(v));
    }
}

bool value_iterable(const value *v) {
    return v->type == V_UNDEFINED || v->type == V_STRING || is_listlike(v) || v->type == V_RANGE || v->type == V_DICT ||
           v->type == V_LOOP;
}

static int text_to_list(render *r, const value *v, value_list *l) {
    for (size_t i = 0, n; i < v->n_bytes; i += n) {
        uint32_t c;
        n = utf8_decode(v->text + i, v->n_bytes - i, &c);
        value item = value_text(v->text + i, n);
        item.flags = v->flags;
        TRY(list_push(r, l, item));
    }
    return 0;
}

int value_to_list(render *r, const value *v, value *out) {
    size_t from = v->type == V_ITERATOR ? v->list->position : 0;
    if (!value_iterable(v) || v->type == V_LOOP) RAISE(r, "'%s' object is not iterable", value_type_name(v));
    if (is_listlike(v)) {
        TRY(list_new(r, V_LIST, v->list->n - from, out));
        if (v->list->n > from) memcpy(out->list->items, v->list->items + from, (v->list->n - from) * sizeof(value));
        out->list->n = v->list->n - from;
        if (v->type == V_ITERATOR) v->list->position = v->list->n;
        return 0;
    }
    TRY(list_new(r, V_LIST, v->type == V_RANGE ? (size_t)v->range->n : v->type == V_DICT ? v->dict->n : 0, out));
    if (v->type == V_STRING) return text_to_list(r, v, out->list);
    for (int64_t i = 0; v->type == V_RANGE && i < v->range->n; i++)
        TRY(list_push(r, out->list, value_int(v->range->start + i * v->range->step)));
    for (size_t i = 0; v->type == V_DICT && i < v->dict->n; i++) TRY(list_push(r, out->list, v->dict->entries[i].key));
    return 0;
}
