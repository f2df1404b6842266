/* Arithmetic and slices with Python's rules: floor division, true division, repetition, overflow into exact doubles. */
#include <math.h>
#include <string.h>

#include "base/utf8.h"
#include "chat/jinja_text.h"
#include "chat/jinja_value.h"

static const char *const op_names[] = {"+", "-", "*", "/", "//", "%", "** or pow()"};

static int unsupported(render *r, binary_op op, const value *a, const value *b) {
    if (is_undefined(a)) return value_raise_undefined(r, a);
    if (is_undefined(b)) return value_raise_undefined(r, b);
    if (op == OP_ADD && (is_string(a) || a->type == V_LIST || a->type == V_TUPLE)) {
        const char *type = is_string(a) ? "str" : value_type_name(a);
        RAISE(r, "can only concatenate %s (not \"%s\") to %s", type, value_type_name(b), type);
    }
    RAISE(r, "unsupported operand type(s) for %s: '%s' and '%s'", op_names[op], value_type_name(a), value_type_name(b));
}

/* ---- sequences ---- */

static int concat_lists(render *r, const value *a, const value *b, value *out) {
    TRY(list_new(r, a->type, a->list->n + b->list->n, out));
    if (a->list->n) memcpy(out->list->items, a->list->items, a->list->n * sizeof(value));
    if (b->list->n) memcpy(out->list->items + a->list->n, b->list->items, b->list->n * sizeof(value));
    out->list->n = a->list->n + b->list->n;
    return 0;
}

static int add_texts(render *r, const value *a, const value *b, value *out) {
    value left = *a, right = *b;
    bool safe = (a->flags | b->flags) & VALUE_SAFE;
    if (safe) TRY(value_escape(r, a, &left));
    if (safe) TRY(value_escape(r, b, &right));
    return value_concat(r, &left, &right, out);
}

static int repeat(render *r, const value *v, int64_t times, value *out) {
    if (times < 0) times = 0;
    if (is_string(v)) {
        text_sink s = SINK(r);
        sink_repeat(&s, v->text, v->n_bytes, (size_t)times);
        TRY(sink_finish(&s, out));
        out->flags = v->flags;
        return 0;
    }
    size_t n = v->list->n;
    if (n && (uint64_t)times > (uint64_t)INT32_MAX / n) return render_fail(r, WEIR_E_LIMIT, "repetition makes too long a list");
    TRY(list_new(r, v->type, n * (size_t)times, out));
    for (int64_t i = 0; n && i < times; i++) memcpy(out->list->items + (size_t)i * n, v->list->items, n * sizeof(value));
    out->list->n = n * (size_t)times;
    return 0;
}

static bool repeatable(const value *v) {
    return is_string(v) || v->type == V_LIST || v->type == V_TUPLE;
}

/* ---- numbers ---- */

static bool is_integral(const value *v) {
    return v->type == V_INT || v->type == V_BOOL || (v->type == V_FLOAT && (v->flags & VALUE_INTEGRAL));
}

/* An integer result: back to 64 bits where it fits. */
static int integral_result(render *r, double d, value *out) {
    if (!isfinite(d)) return render_fail(r, WEIR_E_LIMIT, "an integer too large to hold");
    if (d > -9.2e18 && d < 9.2e18)
        *out = value_int((int64_t)d);
    else
        *out = (value){.type = V_FLOAT, .flags = VALUE_INTEGRAL, .real = d};
    return 0;
}

static int64_t floor_mod(int64_t a, int64_t b) {
    if (b == -1) return 0;
    int64_t m = a % b;
    return m && (m < 0) != (b < 0) ? m + b : m;
}

static double float_mod(double a, double b) {
    double m = fmod(a, b);
    if (m != 0 && (m < 0) != (b < 0)) return m + b;
    return m == 0 ? copysign(0, b) : m;
}

static int int_power(render *r, int64_t a, int64_t n, value *out) {
    int64_t result = 1, base = a;
    for (int64_t k = n; k > 0; k >>= 1) {
        if ((k & 1) && __builtin_mul_overflow(result, base, &result)) return integral_result(r, pow((double)a, (double)n), out);
        if (k > 1 && __builtin_mul_overflow(base, base, &base)) return integral_result(r, pow((double)a, (double)n), out);
    }
    *out = value_int(result);
    return 0;
}

static int float_arithmetic(render *r, binary_op op, double x, double y, value *out) {
    if (y == 0 && (op == OP_DIV || op == OP_FLOORDIV || op == OP_MOD))
        RAISE(r, "%s",
              op == OP_DIV   ? "float division by zero"
              : op == OP_MOD ? "float modulo"
                             : "float floor division by zero");
    if (op == OP_POW && x == 0 && y < 0) RAISE(r, "0.0 cannot be raised to a negative power");
    if (op == OP_POW && x < 0 && isfinite(y) && y != floor(y)) RAISE(r, "complex numbers are not supported");
    double z = 0;
    switch (op) {
    case OP_ADD:
        z = x + y;
        break;
    case OP_SUB:
        z = x - y;
        break;
    case OP_MUL:
        z = x * y;
        break;
    case OP_DIV:
        z = x / y;
        break;
    case OP_FLOORDIV:
        z = round((x - float_mod(x, y)) / y);
        break;
    case OP_MOD:
        z = float_mod(x, y);
        break;
    case OP_POW:
        z = pow(x, y);
        break;
    }
    if (op == OP_POW && isinf(z) && isfinite(x) && isfinite(y)) RAISE(r, "(34, 'Numerical result out of range')");
    *out = value_float(z);
    return 0;
}

static int int_arithmetic(render *r, binary_op op, int64_t i, int64_t k, value *out) {
    int64_t result = 0;
    bool overflow = false;
    if (k == 0 && (op == OP_DIV || op == OP_FLOORDIV || op == OP_MOD))
        RAISE(r, "%s",
              op == OP_DIV   ? "division by zero"
              : op == OP_MOD ? "integer modulo by zero"
                             : "integer division or modulo by zero");
    switch (op) {
    case OP_ADD:
        overflow = __builtin_add_overflow(i, k, &result);
        break;
    case OP_SUB:
        overflow = __builtin_sub_overflow(i, k, &result);
        break;
    case OP_MUL:
        overflow = __builtin_mul_overflow(i, k, &result);
        break;
    case OP_DIV:
        *out = value_float((double)i / (double)k);
        return 0;
    case OP_FLOORDIV:
        overflow = i == INT64_MIN && k == -1;
        if (!overflow) result = (i - floor_mod(i, k)) / k;
        break;
    case OP_MOD:
        result = floor_mod(i, k);
        break;
    case OP_POW:
        if (k >= 0) return int_power(r, i, k, out);
        return float_arithmetic(r, op, (double)i, (double)k, out);
    }
    if (overflow) {
        value v;
        TRY(float_arithmetic(r, op, (double)i, (double)k, &v));
        return integral_result(r, v.real, out);
    }
    *out = value_int(result);
    return 0;
}

int value_arithmetic(render *r, binary_op op, const value *a, const value *b, value *out) {
    int64_t i, k;
    double x, y;
    if (value_as_int(a, &i) && value_as_int(b, &k)) return int_arithmetic(r, op, i, k, out);
    if (value_as_double(a, &x) && value_as_double(b, &y)) {
        TRY(float_arithmetic(r, op, x, y, out));
        return is_integral(a) && is_integral(b) && op != OP_DIV ? integral_result(r, out->real, out) : 0;
    }
    if (op == OP_MOD && is_string(a)) return format_percent(r, a, b, out);
    if (op == OP_ADD && is_string(a) && is_string(b)) return add_texts(r, a, b, out);
    if (op == OP_ADD && a->type == b->type && (a->type == V_LIST || a->type == V_TUPLE)) return concat_lists(r, a, b, out);
    if (op == OP_MUL && repeatable(a) && value_as_int(b, &k)) return repeat(r, a, k, out);
    if (op == OP_MUL && repeatable(b) && value_as_int(a, &k)) return repeat(r, b, k, out);
    if (op == OP_MUL && (repeatable(a) || repeatable(b)) && !is_undefined(a) && !is_undefined(b))
        RAISE(r, "can't multiply sequence by non-int of type '%s'", value_type_name(repeatable(a) ? b : a));
    return unsupported(r, op, a, b);
}

int value_negate(render *r, const value *v, value *out) {
    int64_t i;
    if (value_as_int(v, &i)) return int_arithmetic(r, OP_SUB, 0, i, out);
    if (is_undefined(v)) return value_raise_undefined(r, v);
    if (v->type != V_FLOAT) RAISE(r, "bad operand type for unary -: '%s'", value_type_name(v));
    *out = *v;
    out->real = -v->real;
    return 0;
}

/* ---- slices ---- */

static int slice_index(render *r, const value *v, int64_t missing, int64_t *out) {
    *out = missing;
    if (v == NULL || v->type == V_NONE || value_as_int(v, out)) return 0;
    RAISE(r, "slice indices must be integers or None or have an __index__ method");
}

/* Python's slice.indices: the first index, the step, how many items of `n`, and the index to stop before. */
static int slice_bounds(render *r, int64_t n, const value *start, const value *stop, const value *step, int64_t out[4]) {
    int64_t s, from, to;
    TRY(slice_index(r, step, 1, &s));
    if (s == 0) RAISE(r, "slice step cannot be zero");
    if (s < -INT64_MAX) s = -INT64_MAX;
    int64_t low = s < 0 ? -1 : 0, high = s < 0 ? n - 1 : n;
    TRY(slice_index(r, start, s < 0 ? INT64_MAX : 0, &from));
    TRY(slice_index(r, stop, s < 0 ? INT64_MIN : INT64_MAX, &to));
    if (from < 0) from = from < -n ? low : from + n;
    if (from > high) from = high;
    if (stop == NULL || stop->type == V_NONE)
        to = s < 0 ? -1 : n;
    else if (to < 0)
        to = to < -n ? low : to + n;
    if (to > high) to = high;
    out[0] = from;
    out[1] = s;
    out[3] = to;
    out[2] = s > 0 ? (from < to ? (to - from - 1) / s + 1 : 0) : (to < from ? (from - to - 1) / -s + 1 : 0);
    return 0;
}

static int slice_text(render *r, const value *v, const int64_t bounds[3], value *out) {
    bool ascii = text_is_ascii(v->text, v->n_bytes);
    size_t from = (size_t)bounds[0], n = (size_t)bounds[2];
    TRY(render_charge(r, v->n_bytes / 16));
    if (n == 0) {
        *out = value_text("", 0);
    } else if (bounds[1] == 1) {
        size_t start = ascii ? from : text_offset(v->text, v->n_bytes, from);
        *out = value_text(v->text + start, ascii ? n : text_offset(v->text + start, v->n_bytes - start, n));
    } else {
        uint32_t *offsets = NULL; /* of every code point */
        size_t count = utf8_count(v->text, v->n_bytes);
        ALLOC(r, offsets, count + 1);
        for (size_t i = 0, at = 0; i <= count; i++) {
            uint32_t c;
            offsets[i] = (uint32_t)at;
            if (at < v->n_bytes) at += utf8_decode(v->text + at, v->n_bytes - at, &c);
        }
        text_sink s = SINK(r);
        for (size_t k = 0; k < n; k++) {
            size_t i = (size_t)(bounds[0] + (int64_t)k * bounds[1]);
            sink_append(&s, v->text + offsets[i], offsets[i + 1] - offsets[i]);
        }
        TRY(render_charge(r, n));
        TRY(sink_finish(&s, out));
    }
    out->flags = v->flags;
    return 0;
}

int value_slice(render *r, const value *v, const value *start, const value *stop, const value *step, value *out) {
    int64_t n, bounds[4] = {0, 1, 0, 0};
    if (is_undefined(v)) return value_raise_undefined(r, v);
    if (v->type == V_DICT) RAISE(r, "unhashable type: 'slice'");
    if (!is_string(v) && v->type != V_LIST && v->type != V_TUPLE && v->type != V_RANGE && v->type != V_ITERATOR)
        RAISE(r, "'%s' object is not subscriptable", value_type_name(v));
    TRY(value_length(r, v, &n));
    TRY(slice_bounds(r, n, start, stop, step, bounds));
    if (is_string(v)) return slice_text(r, v, bounds, out);
    if (v->type == V_RANGE) {
        value_range *g;
        ALLOC(r, g, 1);
        *g = (value_range){
            .start = v->range->start + bounds[0] * v->range->step, .step = v->range->step * bounds[1], .n = bounds[2]};
        g->stop = v->range->start + bounds[3] * v->range->step;
        *out = (value){.type = V_RANGE, .range = g};
        return 0;
    }
    TRY(list_new(r, v->type == V_TUPLE ? V_TUPLE : V_LIST, (size_t)bounds[2], out));
    size_t base = v->type == V_ITERATOR ? v->list->position : 0;
    for (int64_t i = 0; i < bounds[2]; i++) out->list->items[i] = v->list->items[base + (size_t)(bounds[0] + i * bounds[1])];
    out->list->n = (size_t)bounds[2];
    return 0;
}
